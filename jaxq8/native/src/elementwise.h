// ELEMENTWISE over any part of its indices: every instruction runs over a block, in vector instructions, before the next does.
#pragma once

#include <vector>

#include "action.h"
#include "code.h"
#include "scaled.h"
#include "walk.h"

namespace jaxq8 {

class ElementwiseKernel {
 public:
  // The tensors are those of the step, or such as lie elsewhere. `rows` of the first indices are rows that are not joined.
  ElementwiseKernel(const std::vector<Tensor>& tensors, const Elementwise& step, int64_t rows = 1);

  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * bytes_each_; }  // that move in the time that it takes

  // The whole falls into units; a unit begins at an index.
  int64_t units() const { return units_; }
  int64_t Begin(int64_t unit) const;

  // Computes the indices begin..end. They begin and end with units or with rows.
  void Run(const Call& call, int64_t begin, int64_t end) const;

 private:
  struct State;

  void JoinAxes(const Elementwise& step, int64_t rows);
  Port InputPort(const Walk& walk, bool converts) const;
  void Execute(const Operation& o, State& state, int64_t first, int64_t n) const;
  void Block(State& state, int64_t first, int64_t n) const;

  std::vector<Walk> inputs_, outputs_;
  std::vector<Walk> numbers_;  // of inputs that are a number for each row, those numbers
  Code code_;
  std::optional<Scaled> scaled_;
  int64_t count_, bytes_each_ = 0;
  int64_t rows_, row_length_;  // as they are given
  int64_t row_;    // the last axis, with those before that lie in it in all tensors
  int64_t block_;  // indices that are done at once: several rows, or a part of one
  bool within_;    // whether blocks lie within rows
  int64_t units_;
};

}  // namespace jaxq8
