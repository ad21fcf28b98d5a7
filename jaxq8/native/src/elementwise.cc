// ELEMENTWISE: every instruction runs over a block of indices, in vector instructions, before the next one does. Blocks are
// pieces of the tensor's indices in order, so broadcast operands and strided views matter to loads and stores alone.
#include <algorithm>
#include <cmath>

#include "action.h"
#include "parallel.h"
#include "vector_math.h"

namespace jaxq8 {
namespace {

constexpr int64_t kBlock = 1024;
using Register = float[kBlock];

// A view in the order of the step's indices, its own axes merged where they lie one in the other.
struct Walk {
  Tensor tensor;
  int rank = 0;
  int64_t dims[kMaxRank], strides[kMaxRank];

  Walk(const Tensor& t, const int64_t* step_dims) : tensor(t) {
    for (int i = 0; i < t.rank; ++i) {
      const int64_t dim = step_dims[i], stride = t.dims[i] == 1 ? 0 : t.strides[i];
      if (dim == 1) continue;
      if (rank && strides[rank - 1] == dim * stride) {
        dims[rank - 1] *= dim;
        strides[rank - 1] = stride;
      } else {
        dims[rank] = dim;
        strides[rank] = stride;
        ++rank;
      }
    }
    if (rank == 0) {
      rank = 1;
      dims[0] = 1;
      strides[0] = 0;
    }
  }

  // Calls row(offset of the first element, stride, position in the block, n) for the pieces of rows in begin..begin + n.
  template <typename F>
  void Rows(int64_t begin, int64_t n, const F& row) const {
    const int last = rank - 1;
    int64_t index[kMaxRank], rest = begin, at = 0;
    for (int i = last; i >= 0; --i) {
      index[i] = i ? rest % dims[i] : rest;
      rest /= dims[i];
      at += index[i] * strides[i];
    }
    for (int64_t done = 0; done < n;) {
      const int64_t piece = std::min(dims[last] - index[last], n - done);
      row(at, strides[last], done, piece);
      done += piece;
      if (done == n) return;
      at -= index[last] * strides[last];
      index[last] = 0;
      for (int i = last - 1; i >= 0; --i) {
        at += strides[i];
        if (++index[i] < dims[i]) break;
        at -= index[i] * strides[i];
        index[i] = 0;
      }
    }
  }
};

template <typename T>
void Load(const Walk& walk, const uint8_t* base, int64_t begin, int64_t n, float* to) {
  const T* data = reinterpret_cast<const T*>(base);
  walk.Rows(begin, n, [&](int64_t at, int64_t stride, int64_t position, int64_t piece) {
    const T* from = data + at;
    float* out = to + position;
    if (stride == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = static_cast<float>(from[i]);
    } else if (stride == 0) {
      std::fill(out, out + piece, static_cast<float>(*from));
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = static_cast<float>(from[i * stride]);
    }
  });
}

// Integers as they are: registers hold their bits.
template <typename T>
void LoadInt(const Walk& walk, const uint8_t* base, int64_t begin, int64_t n, float* to) {
  const T* data = reinterpret_cast<const T*>(base);
  walk.Rows(begin, n, [&](int64_t at, int64_t stride, int64_t position, int64_t piece) {
    float* out = to + position;
#pragma GCC ivdep
    for (int64_t i = 0; i < piece; ++i) out[i] = FloatOf(static_cast<int32_t>(data[at + i * stride]));
  });
}

void LoadAny(const Walk& walk, const uint8_t* base, int64_t begin, int64_t n, float* to) {
  switch (walk.tensor.dtype) {
    case Dtype::kU8: return Load<uint8_t>(walk, base, begin, n, to);
    case Dtype::kS8: return Load<int8_t>(walk, base, begin, n, to);
    case Dtype::kS32: return Load<int32_t>(walk, base, begin, n, to);
    case Dtype::kF32: return Load<float>(walk, base, begin, n, to);
  }
}

// The item that is stored for a number: itself, or its code.
template <typename T>
inline T ItemOf(float x) {
  if constexpr (std::is_same_v<T, float>) {  // int32 comes here, too: its bits are stored
    return x;
  } else {
    constexpr float least = std::is_signed_v<T> ? -128.f : 0.f, most = std::is_signed_v<T> ? 127.f : 255.f;
    x = x > least ? x : least;  // and NaN
    x = x < most ? x : most;
    return static_cast<T>(BitsOf(x + kRounder));  // the low byte is that of the integer, in two's complement
  }
}

template <typename T>
void Store(const Walk& walk, uint8_t* base, int64_t begin, int64_t n, const float* from) {
  T* data = reinterpret_cast<T*>(base);
  walk.Rows(begin, n, [&](int64_t at, int64_t stride, int64_t position, int64_t piece) {
    T* out = data + at;
    const float* in = from + position;
    if (stride == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i] = ItemOf<T>(in[i]);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < piece; ++i) out[i * stride] = ItemOf<T>(in[i]);
    }
  });
}

// Registers are one after another in memory and either the same or apart: `ivdep` tells the compiler that no element depends on
// another one, which it would have to find out each time.
template <typename F>
inline void One(float* a, const float* b, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) a[i] = f(b[i]);
}

template <typename F>
inline void Two(float* a, const float* b, const float* c, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) a[i] = f(b[i], c[i]);
}

template <typename F>
inline void Three(float* a, const float* b, const float* c, const float* d, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) a[i] = f(b[i], c[i], d[i]);
}

// A function of integers, on the bits of registers; without a sign, so that it wraps.
template <typename F>
inline void TwoInts(float* a, const float* b, const float* c, int64_t n, const F& f) {
  Two(a, b, c, n, [&](float x, float y) {
    return FloatOf(static_cast<int32_t>(f(static_cast<uint32_t>(BitsOf(x)), static_cast<uint32_t>(BitsOf(y)))));
  });
}

inline int32_t Signed(uint32_t x) { return static_cast<int32_t>(x); }

void Compute(const Instruction& code, Register* r, int64_t n) {
  float *a = r[code.a];
  const float *b = r[code.b], *c = r[code.c], *d = r[code.d];
  switch (code.op) {
    case kConst:
    case kConstInt: std::fill(a, a + n, FloatOf(code.value)); break;
    case kAdd: Two(a, b, c, n, [](float x, float y) { return x + y; }); break;
    case kSub: Two(a, b, c, n, [](float x, float y) { return x - y; }); break;
    case kMul: Two(a, b, c, n, [](float x, float y) { return x * y; }); break;
    case kDiv: Two(a, b, c, n, [](float x, float y) { return x / y; }); break;
    case kMax: Two(a, b, c, n, [](float x, float y) { return x > y || x != x ? x : y; }); break;
    case kMin: Two(a, b, c, n, [](float x, float y) { return x < y || x != x ? x : y; }); break;
    case kNeg: One(a, b, n, [](float x) { return -x; }); break;
    case kAbs: One(a, b, n, [](float x) { return std::fabs(x); }); break;
    case kExp: One(a, b, n, [](float x) { return Exp(x); }); break;
    case kLogistic: One(a, b, n, [](float x) { return Logistic(x); }); break;
    case kTanh: One(a, b, n, [](float x) { return Tanh(x); }); break;
    case kErf: One(a, b, n, [](float x) { return Erf(x); }); break;
    case kSqrt: One(a, b, n, [](float x) { return std::sqrt(x); }); break;
    case kRsqrt: One(a, b, n, [](float x) { return 1.f / std::sqrt(x); }); break;
    case kNanIf: Two(a, b, c, n, [](float x, float y) { return x != x ? x : y; }); break;
    case kSelect: Three(a, b, c, d, n, [](float x, float y, float z) { return x != 0.f ? y : z; }); break;
    case kEq: Two(a, b, c, n, [](float x, float y) { return x == y ? 1.f : 0.f; }); break;
    case kNe: Two(a, b, c, n, [](float x, float y) { return x != y ? 1.f : 0.f; }); break;
    case kLt: Two(a, b, c, n, [](float x, float y) { return x < y ? 1.f : 0.f; }); break;
    case kLe: Two(a, b, c, n, [](float x, float y) { return x <= y ? 1.f : 0.f; }); break;
    case kGt: Two(a, b, c, n, [](float x, float y) { return x > y ? 1.f : 0.f; }); break;
    case kGe: Two(a, b, c, n, [](float x, float y) { return x >= y ? 1.f : 0.f; }); break;
    case kAnd: Two(a, b, c, n, [](float x, float y) { return (x != 0.f) & (y != 0.f) ? 1.f : 0.f; }); break;
    case kOr: Two(a, b, c, n, [](float x, float y) { return (x != 0.f) | (y != 0.f) ? 1.f : 0.f; }); break;
    case kPow: Two(a, b, c, n, [](float x, float y) { return Pow(x, y); }); break;
    case kIntAdd: TwoInts(a, b, c, n, [](uint32_t x, uint32_t y) { return x + y; }); break;
    case kIntSub: TwoInts(a, b, c, n, [](uint32_t x, uint32_t y) { return x - y; }); break;
    case kIntMul: TwoInts(a, b, c, n, [](uint32_t x, uint32_t y) { return x * y; }); break;
    case kIntMax: TwoInts(a, b, c, n, [](uint32_t x, uint32_t y) { return Signed(x) > Signed(y) ? x : y; }); break;
    case kIntMin: TwoInts(a, b, c, n, [](uint32_t x, uint32_t y) { return Signed(x) < Signed(y) ? x : y; }); break;
    case kRound: One(a, b, n, [](float x) { return std::nearbyint(x); }); break;
    case kFloor: One(a, b, n, [](float x) { return std::floor(x); }); break;
    case kCeil: One(a, b, n, [](float x) { return std::ceil(x); }); break;
    case kSign: One(a, b, n, [](float x) { return x != x || x == 0.f ? x : x > 0.f ? 1.f : -1.f; }); break;
    case kLog: One(a, b, n, [](float x) { return Log(x); }); break;
    case kLog1p: One(a, b, n, [](float x) { return Log1p(x); }); break;
    case kExpm1: One(a, b, n, [](float x) { return Expm1(x); }); break;
    case kIsFinite: One(a, b, n, [](float x) { return std::fabs(x) <= 3.4028234e38f ? 1.f : 0.f; }); break;
    case kNot: One(a, b, n, [](float x) { return x == 0.f ? 1.f : 0.f; }); break;
    case kToInt: One(a, b, n, [](float x) { return FloatOf(ToInt(x)); }); break;
    case kToFloat: One(a, b, n, [](float x) { return static_cast<float>(BitsOf(x)); }); break;
    default: break;
  }
}

// In bytes that move in the same time.
int64_t CostOf(Op op) {
  if (op == kPow) return 128;
  return (op >= kExp && op <= kErf) || (op >= kLog && op <= kExpm1) ? 32 : 2;
}

class ElementwiseAction final : public Action {
 public:
  ElementwiseAction(const Program& program, const Elementwise& step) : code_(step.code) {
    count_ = program.tensors[static_cast<size_t>(step.outputs[0])].count();
    for (int id : step.inputs) inputs_.emplace_back(program.tensors[static_cast<size_t>(id)], step.dims);
    for (int id : step.outputs) outputs_.emplace_back(program.tensors[static_cast<size_t>(id)], step.dims);
    // What a block costs beside its loads and stores.
    for (const Instruction& c : code_) bytes_ += CostOf(c.op);
    for (const auto* walks : {&inputs_, &outputs_}) {
      for (const Walk& walk : *walks) bytes_ += SizeOf(walk.tensor.dtype);
    }
    bytes_ = std::min<int64_t>(bytes_, 4096);
  }

  void Run(const Call& call) const override {
    const int64_t blocks = (count_ + kBlock - 1) / kBlock;
    Parallel(blocks, count_ * bytes_, [&](int64_t begin, int64_t end) {
      alignas(64) Register registers[kRegisters];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock, n = std::min(kBlock, count_ - first);
        for (const Instruction& c : code_) Execute(call, c, registers, first, n);
      }
    });
  }

  std::string Describe() const override { return "elementwise of " + std::to_string(code_.size()) + " instructions"; }

 private:
  void Execute(const Call& call, const Instruction& c, Register* r, int64_t first, int64_t n) const {
    if (c.op == kLoad) {
      const Walk& walk = inputs_[static_cast<size_t>(c.b)];
      LoadAny(walk, call.At(walk.tensor), first, n, r[c.a]);
    } else if (c.op == kLoadInt) {
      const Walk& walk = inputs_[static_cast<size_t>(c.b)];
      const uint8_t* from = call.At(walk.tensor);
      switch (walk.tensor.dtype) {
        case Dtype::kU8: return LoadInt<uint8_t>(walk, from, first, n, r[c.a]);
        case Dtype::kS8: return LoadInt<int8_t>(walk, from, first, n, r[c.a]);
        default: return Load<float>(walk, from, first, n, r[c.a]);
      }
    } else if (c.op == kStore || c.op == kEncode || c.op == kStoreInt) {
      const Walk& walk = outputs_[static_cast<size_t>(c.a)];
      uint8_t* to = call.At(walk.tensor);
      switch (walk.tensor.dtype) {
        case Dtype::kU8: return Store<uint8_t>(walk, to, first, n, r[c.b]);
        case Dtype::kS8: return Store<int8_t>(walk, to, first, n, r[c.b]);
        default: return Store<float>(walk, to, first, n, r[c.b]);
      }
    } else {
      Compute(c, r, n);
    }
  }

  std::vector<Instruction> code_;
  std::vector<Walk> inputs_, outputs_;
  int64_t count_ = 0, bytes_ = 0;
};

}  // namespace

std::unique_ptr<Action> MakeElementwise(const Program& program, const Elementwise& step) {
  return std::make_unique<ElementwiseAction>(program, step);
}

}  // namespace jaxq8
