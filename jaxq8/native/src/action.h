// An action is a piece of work with everything decided but the addresses of the buffers. A step becomes one action or a few:
// a convolution whose weights come in another layout, for instance, a reorder and the convolution.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace jaxq8 {

// What belongs to one call alone while it runs: the addresses of the buffers, the arena, the memory of the steps.
struct Lane;

struct Call {
  uint8_t* const* buffers;  // arguments, then results
  uint8_t* arena;
  uint8_t* scratch;
  Lane* lane;
  uint8_t* own = nullptr;  // for rows from `row` on
  int64_t row = 0;

  uint8_t* At(int place, int64_t offset) const {
    return (place >= 0 ? buffers[place] : place == kArena ? arena : scratch) + offset;
  }
  uint8_t* At(const Tensor& t) const {
    if (t.place != kOwn) return At(t.place, t.offset);
    // Where the first row of all would be, which may be before the memory: as a number, not as a pointer.
    return reinterpret_cast<uint8_t*>(reinterpret_cast<intptr_t>(own) + t.offset - row * t.row_bytes);
  }
};

class Action {
 public:
  virtual ~Action() = default;
  virtual void Run(const Call& call) const = 0;
  virtual void Enter(Lane&, const Call&) const {}  // makes what a lane must hold for this action
  virtual std::string Describe() const = 0;
};

using Actions = std::vector<std::unique_ptr<Action>>;

std::unique_ptr<Action> MakeCopy(const Tensor& src, const Tensor& dst);
std::unique_ptr<Action> MakePlaced(const Program& program, const Placed& step);
std::unique_ptr<Action> MakeFill(const Program& program, const Fill& step);
// vector_product.cc: nothing for products that it cannot do.
std::unique_ptr<Action> MakeVectorProduct(const Tensor& a, const Tensor& b, const Tensor& dst);
std::unique_ptr<Action> MakePool(const Program& program, const Pool& step);
std::unique_ptr<Action> MakeElementwise(const Program& program, const Elementwise& step);

}  // namespace jaxq8
