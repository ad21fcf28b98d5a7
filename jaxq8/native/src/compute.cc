// What the instructions of ELEMENTWISE compute: a loop for each, which becomes vector instructions.
#include <cmath>

#include "code.h"
#include "vector_math.h"

namespace jaxq8 {
namespace {

// Operands and results are either the same memory or apart: `ivdep` tells the compiler that no element depends on another one,
// which it would have to find out each time.
template <typename F>
inline void One(float* a, const float* b, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) a[i] = f(b[i]);
}

template <typename D, typename F>
inline void Within(float* a, const float* b, int64_t n, const F& f) {
  const D domain;
  One(a, b, n, [&](float x) { return f(x, domain); });
}

template <typename F>
inline void Two(float* a, const float* b, const float* c, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) a[i] = f(b[i], c[i]);
}

// One of the two may be a number.
template <typename F>
inline void TwoOrNumber(const Operation& o, float* a, const float* b, const float* c, int64_t n, const F& f) {
  if (o.number[1]) {
    const float y = *c;
    One(a, b, n, [&](float x) { return f(x, y); });
  } else if (o.number[0]) {
    const float x = *b;
    One(a, c, n, [&](float y) { return f(x, y); });
  } else {
    Two(a, b, c, n, f);
  }
}

// Quotients by one number, without divisions but as exact: what the product with the inverse leaves is divided again. Where the
// inverse or the product is not a normal float, there is nothing to correct.
void DivideBy(float y, float* a, const float* b, int64_t n) {
  const float inverse = 1.f / y, size = std::fabs(y);
  if (!(size > 1e-37f && size < 1e37f)) return One(a, b, n, [&](float x) { return x / y; });
  One(a, b, n, [&](float x) {
    const float q = x * inverse, corrected = std::fma(std::fma(-q, y, x), inverse, q), distance = std::fabs(q);
    return (distance > 0.f) & (distance <= 3.4028234e38f) ? corrected : q;
  });
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

}  // namespace

void Compute(const Operation& o, float* a, const float* b, const float* c, const float* d, int64_t n) {
  switch (o.op) {
    case kAdd: TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x + y; }); break;
    case kSub: TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x - y; }); break;
    case kMul: TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x * y; }); break;
    case kDiv:
      if (o.number[1]) return DivideBy(*c, a, b, n);
      TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x / y; });
      break;
    case kMax: TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x > y || x != x ? x : y; }); break;
    case kMin: TwoOrNumber(o, a, b, c, n, [](float x, float y) { return x < y || x != x ? x : y; }); break;
    case kNeg: One(a, b, n, [](float x) { return -x; }); break;
    case kAbs: One(a, b, n, [](float x) { return std::fabs(x); }); break;
    case kExp: Within<ExpDomain>(a, b, n, Exp); break;
    case kLogistic: Within<ExpDomain>(a, b, n, Logistic); break;
    case kTanh: Within<TanhDomain>(a, b, n, Tanh); break;
    case kErf: Within<ErfDomain>(a, b, n, Erf); break;
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
    case kExpm1: Within<Expm1Domain>(a, b, n, Expm1); break;
    case kIsFinite: One(a, b, n, [](float x) { return std::fabs(x) <= 3.4028234e38f ? 1.f : 0.f; }); break;
    case kNot: One(a, b, n, [](float x) { return x == 0.f ? 1.f : 0.f; }); break;
    case kToInt: One(a, b, n, [](float x) { return FloatOf(ToInt(x)); }); break;
    case kToFloat: One(a, b, n, [](float x) { return static_cast<float>(BitsOf(x)); }); break;
    default: break;
  }
}

}  // namespace jaxq8
