// What the actions that call oneDNN share: its engine, one call's memory objects, and the collecting of a step's actions.
#pragma once

#include "action.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace jaxq8 {

const dnnl::engine& Engine();

// oneDNN's primitives are shared between calls, its memory objects hold an address and are not. A lane is one call's set.
struct Lane {
  explicit Lane(size_t bytes);
  ~Lane();
  Lane(const Lane&) = delete;

  uint8_t* arena;  // the program's, then the steps' own; 64-byte aligned
  dnnl::stream stream;
  std::vector<std::vector<dnnl::memory>> memories;   // by the number of the primitive
  std::vector<std::vector<dnnl_exec_arg_t>> arguments;
};

// An argument of a primitive and where its bytes lie.
struct Argument {
  int name;
  dnnl::memory::desc desc;
  int place;
  int64_t offset;
};

class PrimitiveAction final : public Action {
 public:
  PrimitiveAction(dnnl::primitive primitive, std::vector<Argument> arguments, int number, std::string text)
      : primitive_(std::move(primitive)), arguments_(std::move(arguments)), number_(static_cast<size_t>(number)),
        text_(std::move(text)) {}

  void Run(const Call& call) const override;
  void Enter(Lane& lane, const Call& call) const override;
  std::string Describe() const override { return text_; }

 private:
  dnnl::primitive primitive_;
  std::vector<Argument> arguments_;
  size_t number_;
  std::string text_;
};

// Collects the actions of steps one after another. Steps run one after another too, so all use the same scratch memory.
struct Collector {
  const Program& program;
  Actions actions;
  int primitives = 0;
  int64_t scratch = 0, most_scratch = 0;

  void BeginStep() { scratch = 0; }

  int64_t Scratch(size_t bytes) {
    const int64_t at = scratch;
    scratch += static_cast<int64_t>((bytes + 63) / 64 * 64);
    most_scratch = std::max(most_scratch, scratch);
    return at;
  }

  // Adds a primitive and its own scratch memory.
  void Add(const dnnl::primitive& primitive, const dnnl::primitive_desc_base& description, std::vector<Argument> arguments,
           std::string text);
};

// contract.cc, reduce.cc and product.cc
void CollectContract(Collector& collector, const Contract& step);
void CollectReduce(Collector& collector, const Reduce& step);
void CollectProduct(Collector& collector, const Product& step);
// 0 for kernels of the instruction set, 1 for products by way of an unfolded image, 2 for plain loops.
int BadnessOf(const std::string& implementation);
// problem.cc: the descriptor of a problem's packed weights.
dnnl::memory::desc PackedWeights(const Problem& problem);

}  // namespace jaxq8
