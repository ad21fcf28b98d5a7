#include "scaled.h"

#include <algorithm>
#include <cmath>

#include "load_store.h"

namespace jaxq8 {
namespace {

constexpr int64_t kLeastRow = 32;  // shorter rows would cost more than the instructions one by one
constexpr float kOne = 1.f, kZero = 0.f, kLowest = -INFINITY, kHighest = INFINITY;

// A product and a sum are rounded one by one, as the instructions are: this file is compiled with -ffp-contract=off.
template <typename In, typename Out, bool kFactorIsNumber, bool kOffsetIsNumber>
void Loop(const In* in, Out* out, int64_t n, const float* factor, const float* offset, float least, float most) {
  const Limits<Out> limits;
  if (least != least || most != most) return std::fill(out, out + n, ItemOf<Out>(NAN, limits));
  const float f = *factor, o = *offset, lowest = limits.least, highest = limits.most;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float x = static_cast<float>(in[i]) * (kFactorIsNumber ? f : factor[i]);
    x = x + (kOffsetIsNumber ? o : offset[i]);
    x = x <= least ? least : x;  // and NaN stays, so that it becomes the code that it always becomes
    x = x >= most ? most : x;
    x = x > lowest ? x : lowest;
    x = x < highest ? x : highest;
    out[i] = static_cast<Out>(BitsOf(x + kRounder));
  }
}

template <typename In, typename Out>
void Run(const Scaled& s, const In* in, Out* out, int64_t position, int64_t n, const float* const* at) {
  const bool f = s.factor < 0 || s.factor_is_number, o = s.offset < 0 || s.offset_is_number;
  const float* factor = s.factor < 0 ? &kOne : at[s.factor] + (f ? 0 : position);
  const float* offset = s.offset < 0 ? &kZero : at[s.offset] + (o ? 0 : position);
  const float least = s.least < 0 ? kLowest : *at[s.least], most = s.most < 0 ? kHighest : *at[s.most];
  const auto loop = f ? (o ? Loop<In, Out, true, true> : Loop<In, Out, true, false>)
                      : (o ? Loop<In, Out, false, true> : Loop<In, Out, false, false>);
  loop(in, out, n, factor, offset, least, most);
}

template <typename Out>
void RunTo(const Scaled& s, Dtype from, const uint8_t* in, Out* out, int64_t position, int64_t n, const float* const* at) {
  switch (from) {
    case Dtype::kU8: return Run(s, in, out, position, n, at);
    case Dtype::kS8: return Run(s, reinterpret_cast<const int8_t*>(in), out, position, n, at);
    case Dtype::kS32: return Run(s, reinterpret_cast<const int32_t*>(in), out, position, n, at);
    default: return Run(s, reinterpret_cast<const float*>(in), out, position, n, at);
  }
}

class Taker {
 public:
  Taker(Code& code, const std::vector<Walk>& inputs, const std::vector<Walk>& outputs, bool within, int64_t row)
      : code_(code), inputs_(inputs), outputs_(outputs), within_(within), row_(row) {}

  std::optional<Scaled> Take() {
    if (code_.each.empty() || code_.each.back().op != kEncode) return std::nullopt;
    Scaled found{};
    found.output = code_.each.back().port;
    size_t at = code_.each.size() - 1;
    std::vector<size_t> taken{at};
    int slot = code_.each[at].from[0];
    // Backwards, in this order.
    TakeNumber(kMin, &slot, &at, &taken, &found.most);
    TakeNumber(kMax, &slot, &at, &taken, &found.least);
    TakeAny(kAdd, &slot, &at, &taken, &found.offset, &found.offset_is_number);
    TakeAny(kMul, &slot, &at, &taken, &found.factor, &found.factor_is_number);
    const std::optional<size_t> load = MakerOf(slot, at);
    if (!load || taken.size() < 3) return std::nullopt;
    const Operation& first = code_.each[*load];
    if (first.op != kLoad || (first.access != Access::kPointer && first.access != Access::kCopied)) return std::nullopt;
    found.input = first.port;
    const Walk& in = inputs_[static_cast<size_t>(found.input)];
    const Walk& out = outputs_[static_cast<size_t>(found.output)];
    if (in.last_stride() != 1 || out.last_stride() != 1) return std::nullopt;
    found.by_rows = !InOnePiece(in) || !InOnePiece(out);
    if (found.by_rows && row_ < kLeastRow) return std::nullopt;
    for (const Walk& input : inputs_) {
      if (input.tensor.overlaps(out.tensor)) return std::nullopt;
    }
    // Everything else was done before the first block, in slots of its own.
    if (taken.size() + 1 != code_.each.size()) return std::nullopt;
    for (int slot : {found.factor, found.offset, found.least, found.most}) {
      if (slot >= 0 && !IsDoneOnce(slot)) return std::nullopt;
    }
    code_.each.clear();
    return found;
  }

 private:
  // Whether the elements of a block lie next to each other.
  bool InOnePiece(const Walk& walk) const { return walk.flat() || within_; }

  // The operation before `end` that makes the present value of a slot.
  std::optional<size_t> MakerOf(int slot, size_t end) const {
    for (size_t i = end; i-- > 0;) {
      if (!IsStore(code_.each[i].op) && code_.each[i].slot == slot) return i;
    }
    return std::nullopt;
  }

  bool Is(Op op, int slot, size_t end, size_t* at) const {
    const std::optional<size_t> maker = MakerOf(slot, end);
    if (!maker) return false;
    const Operation& o = code_.each[*maker];
    *at = *maker;
    return o.op == op && !o.by_rows && o.direct < 0;
  }

  void TakeNumber(Op op, int* slot, size_t* at, std::vector<size_t>* taken, int* number) {
    size_t found;
    if (!Is(op, *slot, *at, &found)) return;
    const Operation& o = code_.each[found];
    if (!o.number[1] || o.number[0]) return;
    *number = o.from[1];
    Go(found, o.from[0], slot, at, taken);
  }

  void TakeAny(Op op, int* slot, size_t* at, std::vector<size_t>* taken, int* other, bool* is_number) {
    size_t found;
    if (!Is(op, *slot, *at, &found)) return;
    const Operation& o = code_.each[found];
    if (o.number[0] || IsDoneOnce(o.from[0])) return;
    *other = o.from[1];
    *is_number = o.number[1];
    Go(found, o.from[0], slot, at, taken);
  }

  static void Go(size_t found, int next, int* slot, size_t* at, std::vector<size_t>* taken) {
    taken->push_back(found);
    *slot = next;
    *at = found;
  }

  bool IsDoneOnce(int slot) const {
    return std::any_of(code_.once.begin(), code_.once.end(), [&](const Operation& o) { return o.slot == slot; });
  }

  Code& code_;
  const std::vector<Walk>&inputs_, &outputs_;
  bool within_;
  int64_t row_;
};

}  // namespace

std::optional<Scaled> TakeScaled(Code& code, const std::vector<Walk>& inputs, const std::vector<Walk>& outputs, bool within,
                                 int64_t row) {
  return Taker(code, inputs, outputs, within, row).Take();
}

void RunScaled(const Scaled& scaled, Dtype from, const uint8_t* in, Dtype to, uint8_t* out, int64_t position, int64_t n,
               const float* const* at) {
  if (to == Dtype::kU8) return RunTo(scaled, from, in, out, position, n, at);
  RunTo(scaled, from, in, reinterpret_cast<int8_t*>(out), position, n, at);
}

}  // namespace jaxq8
