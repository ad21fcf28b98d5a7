// LOOP: a region inside of a region. What is handed on changes places with a spare, so that nothing is copied.
#include <algorithm>
#include <cstring>

#include "onednn.h"
#include "region.h"

namespace jaxq8 {
namespace {

class LoopAction final : public Action {
 public:
  LoopAction(const Program& program, const Loop& step) : step_(step), body_(*step.body) {
    const auto at = [&](int id) { return program.tensors[static_cast<size_t>(id)]; };
    for (size_t i = 0; i < step.inputs.size(); ++i) inputs_.push_back({at(step.inputs[i]), step.sliced[i] ? step.length : 0});
    for (size_t i = 0; i < step.outputs.size(); ++i) {
      outputs_.push_back({at(step.outputs[i]), step.spares[i] < 0 ? step.length : 0});
      spares_.push_back(step.spares[i] < 0 ? Tensor{} : at(step.spares[i]));
      changes_.push_back(step.spares[i] >= 0);
    }
    // What begins with what it is handed on to stays where it is.
    for (const Alias& alias : step.body->aliases) {
      const size_t argument = static_cast<size_t>(alias.argument), result = static_cast<size_t>(alias.result);
      if (step.handed[argument] == alias.result) changes_[result] = 0;
      aliases_.push_back({argument, result, step.body->needs[step.inputs.size() + result].bytes});
    }
  }

  void Run(const Call& call) const override {
    const size_t n_inputs = inputs_.size();
    std::vector<uint8_t*> buffers(n_inputs + outputs_.size());
    std::unique_ptr<Lane> lane = body_.Take();
    for (int64_t time = 0; time < step_.length; ++time) {
      const int64_t entry = step_.reverse ? step_.length - 1 - time : time;
      for (size_t i = 0; i < n_inputs; ++i) {
        const bool handed = time > 0 && step_.handed[i] >= 0;
        buffers[i] = handed ? buffers[n_inputs + static_cast<size_t>(step_.handed[i])] : inputs_[i].At(call, entry);
      }
      for (size_t i = 0; i < outputs_.size(); ++i) {
        const bool spare = changes_[i] && (step_.length - 1 - time) % 2 == 1;
        buffers[n_inputs + i] = spare ? call.At(spares_[i]) : outputs_[i].At(call, entry);
      }
      for (const Begun& begun : aliases_) {
        const uint8_t* from = buffers[begun.argument];
        uint8_t* to = buffers[n_inputs + begun.result];
        if (from != to) std::memcpy(to, from, static_cast<size_t>(begun.bytes));
      }
      body_.RunIn(*lane, buffers.data());
    }
    body_.GiveBack(std::move(lane));
  }

  std::string Describe() const override {
    std::string inside = body_.Describe();
    std::replace(inside.begin(), inside.end(), '\n', ';');
    return std::to_string(step_.length) + " times (" + inside + ")";
  }

 private:
  // A tensor, taken apart into so many entries; 0 for one that is the same every time.
  struct Whole {
    Tensor tensor;
    int64_t entries;

    uint8_t* At(const Call& call, int64_t entry) const {
      uint8_t* at = call.At(tensor);
      return entries ? at + entry * (tensor.count() / entries) * SizeOf(tensor.dtype) : at;
    }
  };

  struct Begun {
    size_t argument, result;
    int64_t bytes;
  };

  Loop step_;
  std::vector<Whole> inputs_, outputs_;
  std::vector<Tensor> spares_;
  std::vector<char> changes_;  // of each result, whether it lies in the spare every other time
  std::vector<Begun> aliases_;
  mutable Region body_;  // its lanes are given out under a lock
};

}  // namespace

std::unique_ptr<Action> MakeLoop(const Program& program, const Loop& step) {
  return std::make_unique<LoopAction>(program, step);
}

}  // namespace jaxq8
