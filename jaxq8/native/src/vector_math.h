// Functions of a float that a compiler turns into vector instructions: no branches, no calls, no tables.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace jaxq8 {

inline int32_t BitsOf(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float FloatOf(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The same number, of which the compiler knows nothing.
inline float Hidden(float x) {
  __asm__("" : "+x"(x));
  return x;
}

// Adding 1.5 * 2**23 rounds a small number to an integer, half to even, and leaves the integer in the low bits.
constexpr float kRounder = 12582912.f;
constexpr int32_t kRounderBits = 0x4B400000;

// The arguments that a function is computed for; beyond, it is what it is at the end. Made outside of loops: what compilers know
// of constants they would use to choose between results, which takes longer than the largest and the smallest of two numbers.
struct Domain {
  float least, most;

  Domain(float from, float to) : least(Hidden(from)), most(Hidden(to)) {}

  float Nearest(float x) const {  // and NaN stays
    x = x < least ? least : x;
    return x > most ? most : x;
  }
};

struct ExpDomain : Domain {
  ExpDomain() : Domain(-87.5f, 89.f) {}
};

// e**x within 2 units of the last place; infinity beyond the range of floats, and 0 where it is hardly a normal float.
inline float Exp(float x, const ExpDomain& domain) {
  x = domain.Nearest(x);
  const float shifted = x * 1.44269504088896341f + kRounder;
  const float whole = shifted - kRounder;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  // Twice p times 2**(n - 1): the largest n is 128, which floats do not have, and for the smallest, -126, the bits are those of 0.
  const uint32_t scale = (static_cast<uint32_t>(BitsOf(shifted)) - static_cast<uint32_t>(kRounderBits - 126)) << 23;
  return (p + p) * FloatOf(static_cast<int32_t>(scale));
}

struct Expm1Domain : Domain {
  Expm1Domain() : Domain(-20.f, 89.f) {}
};

// e**x - 1, near 0 too, where e**x has lost what x says.
inline float Expm1(float x, const Expm1Domain& domain) {
  const float c = domain.Nearest(x);
  const float shifted = c * 1.44269504088896341f + kRounder;
  const float whole = shifted - kRounder;
  const float r = (c - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 2.48015873e-5f;
  p = p * r + 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  const float q = p * r * r + r;
  // Half of 2**n * (q + 1) - 1: the largest n is 128, which floats do not have.
  const uint32_t scale = (static_cast<uint32_t>(BitsOf(shifted)) - static_cast<uint32_t>(kRounderBits - 126)) << 23;
  const float half = FloatOf(static_cast<int32_t>(scale));
  const float result = 2.f * (half * q + (half - 0.5f));
  return x == 0.f ? x : result;
}

// The logarithm of m * 2**e + c for a mantissa m that is f + 1, within an ulp (the polynomial of FreeBSD's logf).
inline float LogOfParts(float f, float e, float c) {
  const float s = f / (2.f + f), z = s * s, w = z * z;
  const float t1 = w * (0.40000972152f + w * 0.24279078841f), t2 = z * (0.66666662693f + w * 0.28498786688f);
  const float half = 0.5f * f * f;
  return (s * (half + t1 + t2) + (e * 9.0580006145e-06f + c)) - half + f + e * 6.9313812256e-01f;
}

// The exponent of a positive number whose mantissa lies between sqrt(1/2) and sqrt(2), and that mantissa less 1.
inline int32_t Split(float x, float* f) {
  const uint32_t bits = static_cast<uint32_t>(BitsOf(x)) + (0x3f800000u - 0x3f3504f3u);
  *f = FloatOf(static_cast<int32_t>((bits & 0x007fffffu) + 0x3f3504f3u)) - 1.f;
  return static_cast<int32_t>(bits >> 23) - 127;
}

inline float Log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  float f;
  const int32_t e = Split(tiny ? x * 8388608.f : x, &f) - (tiny ? 23 : 0);
  float result = LogOfParts(f, static_cast<float>(e), 0.f);
  result = x > 3.4028234e38f || x != x ? x : result;
  result = x < 0.f ? NAN : result;
  return x == 0.f ? -INFINITY : result;
}

inline float Log1p(float x) {
  const float u = 1.f + x;
  float f;
  const int32_t e = Split(u, &f);
  // What the sum has lost, as seen from the mantissa: the logarithm grows by it over u.
  const float lost = (x > 1.f ? 1.f - (u - x) : x - (u - 1.f)) / u;
  const bool small = x > -0.2928f && x < 0.4142f;
  float result = LogOfParts(small ? x : f, small ? 0.f : static_cast<float>(e), small ? 0.f : lost);
  result = x > 3.4028234e38f || x == 0.f || x != x ? x : result;
  result = x < -1.f ? NAN : result;
  return x == -1.f ? -INFINITY : result;
}

// x**y by way of the logarithm to base 2, in double precision: a float's exponent times y needs more digits than a float has.
inline float Pow(float x, float y) {
  const double size = std::fabs(static_cast<double>(x));  // a float that is not normal is a normal double
  int64_t bits;
  std::memcpy(&bits, &size, 8);
  constexpr int64_t root = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;  // sqrt(1/2) and 1
  const int64_t shifted = bits + (one - root);
  const int64_t mantissa_bits = (shifted & 0x000fffffffffffff) + root;
  double m;
  std::memcpy(&m, &mantissa_bits, 8);
  // The exponent as a double without a conversion of 64-bit integers: beneath the mantissa of 2**52.
  const int64_t exponent_bits = (shifted >> 52 & 0x7ff) | 0x4330000000000000;
  double e;
  std::memcpy(&e, &exponent_bits, 8);
  e -= 4503599627370496. + 1023.;
  const double s = (m - 1.) / (m + 1.), z = s * s;
  double p = 1. / 15;
  p = p * z + 1. / 13;
  p = p * z + 1. / 11;
  p = p * z + 1. / 9;
  p = p * z + 1. / 7;
  p = p * z + 1. / 5;
  p = p * z + 1. / 3;
  double log2 = e + (s + s * z * p) * 2.8853900817779268;
  log2 = size == 0. ? -INFINITY : size > 3.5e38 ? INFINITY : log2;
  double t = log2 * static_cast<double>(y);
  t = t < -200. ? -200. : t;
  t = t > 200. ? 200. : t;
  constexpr double rounder = 6755399441055744.;  // 1.5 * 2**52, as kRounder
  const double sum = t + rounder;
  const double r = (t - (sum - rounder)) * 0.69314718055994531;
  double q = 1. / 3628800;
  q = q * r + 1. / 362880;
  q = q * r + 1. / 40320;
  q = q * r + 1. / 5040;
  q = q * r + 1. / 720;
  q = q * r + 1. / 120;
  q = q * r + 1. / 24;
  q = q * r + 1. / 6;
  q = q * r + 0.5;
  q = q * r * r + r + 1.;
  int64_t n;
  std::memcpy(&n, &sum, 8);
  const uint64_t scale_bits = (static_cast<uint64_t>(n) + 1023) << 52;
  double scale;
  std::memcpy(&scale, &scale_bits, 8);
  float result = static_cast<float>(q * scale);
  const bool whole = std::floor(y) == y, odd = whole && std::floor(y * 0.5f) != y * 0.5f;
  result = odd && BitsOf(x) < 0 ? -result : result;
  result = x < 0.f && size < 3.5e38 && !whole ? NAN : result;
  result = x != x || y != y ? x + y : result;
  result = size == 1. && std::fabs(y) > 3.4028234e38f ? 1.f : result;
  return x == 1.f || y == 0.f ? 1.f : result;
}

inline float Logistic(float x, const ExpDomain& domain) { return 1.f / (1.f + Exp(-x, domain)); }

struct TanhDomain : Domain {
  TanhDomain() : Domain(-7.90531111f, 7.90531111f) {}
};

// A quotient of polynomials where the function is not 1 in float yet (the one that Eigen and XLA use).
inline float Tanh(float x, const TanhDomain& domain) {
  const float c = domain.Nearest(x);
  const float z = c * c;
  float p = -2.76076847742355e-16f;
  p = p * z + 2.00018790482477e-13f;
  p = p * z + -8.60467152213735e-11f;
  p = p * z + 5.12229709037114e-08f;
  p = p * z + 1.48572235717979e-05f;
  p = p * z + 6.37261928875436e-04f;
  p = p * z + 4.89352455891786e-03f;
  float q = 1.19825839466702e-06f;
  q = q * z + 1.18534705686654e-04f;
  q = q * z + 2.26843463243900e-03f;
  q = q * z + 4.89352518554385e-03f;
  const float quotient = c * p / q;
  return z < 1.6e-7f ? x : quotient;
}

// Truncated and saturated; 0 for NaN.
inline int32_t ToInt(float x) {
  float c = x > -2147483648.f ? x : -2147483648.f;
  c = c < 2147483520.f ? c : 2147483520.f;  // the largest float that is an int32
  const int32_t inside = static_cast<int32_t>(c);
  const int32_t most = x >= 2147483648.f ? INT32_MAX : inside;
  return x != x ? 0 : most;
}

struct ErfDomain : Domain {
  ErfDomain() : Domain(-4.f, 4.f) {}
};

// Likewise.
inline float Erf(float x, const ErfDomain& domain) {
  const float c = domain.Nearest(x);
  const float z = c * c;
  float p = -2.72614225801306e-10f;
  p = p * z + 2.77068142495902e-08f;
  p = p * z + -2.10102402082508e-06f;
  p = p * z + -5.69250639462346e-05f;
  p = p * z + -7.34990630326855e-04f;
  p = p * z + -2.95459980854025e-03f;
  p = p * z + -1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * z + -2.13374055278905e-04f;
  q = q * z + -1.68282697438203e-03f;
  q = q * z + -7.37332916720468e-03f;
  q = q * z + -1.42647390514189e-02f;
  return c * p / q;
}

}  // namespace jaxq8
