// A region: a program with its primitives, and the lanes in which calls run.
#pragma once

#include <memory>

#include "action.h"

namespace jaxq8 {

class Region {
 public:
  explicit Region(const Program& program);  // throws ProgramError
  ~Region();

  // Runs everything; the buffers have been compared with the program's needs. Throws ProgramError.
  void Run(uint8_t* const* buffers);
  void RunHere(uint8_t* const* buffers);  // on the calling thread

  // The same in pieces, for whoever runs it several times in a call: a lane, which one call at a time may use.
  std::unique_ptr<Lane> Take();
  void RunIn(Lane& lane, uint8_t* const* buffers);
  void GiveBack(std::unique_ptr<Lane> lane);

  int threads() const { return threads_; }
  int64_t forks() const { return forks_; }
  std::string Describe() const;  // a line for each step

 private:
  Call CallOf(Lane& lane, uint8_t* const* buffers) const;

  Actions actions_;
  std::vector<size_t> steps_;        // of each action, the first if there are several
  std::vector<std::string> names_;   // of each step
  int64_t arena_bytes_, scratch_bytes_ = 0;
  int threads_;
  int64_t forks_;
  std::vector<std::unique_ptr<Lane>> free_;
};

// loop.cc
std::unique_ptr<Action> MakeLoop(const Program& program, const Loop& step);

// problem.cc: the words that tell the layout of a problem's packed weights.
std::vector<int64_t> LayoutWords(const Problem& problem);

}  // namespace jaxq8
