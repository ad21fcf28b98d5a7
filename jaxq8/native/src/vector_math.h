// Functions of a float that a compiler turns into vector instructions: no branches, no calls, no tables.
#pragma once

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

// Adding 1.5 * 2**23 rounds a small number to an integer, half to even, and leaves the integer in the low bits.
constexpr float kRounder = 12582912.f;
constexpr int32_t kRounderBits = 0x4B400000;

// e**x within 2 units of the last place; infinity and zero beyond the range of floats. The comparisons keep NaN.
inline float Exp(float x) {
  x = x < -104.f ? -104.f : x;
  x = x > 89.f ? 89.f : x;
  const float shifted = x * 1.44269504088896341f + kRounder;
  const int32_t n = static_cast<int32_t>(static_cast<uint32_t>(BitsOf(shifted)) - static_cast<uint32_t>(kRounderBits));
  const float whole = shifted - kRounder;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  // 2**n in two factors: n goes from -150 to 128, and a float's exponent from -126 to 127.
  const int32_t half = n >> 1;
  const uint32_t first = static_cast<uint32_t>(half + 127) << 23, second = static_cast<uint32_t>(n - half + 127) << 23;
  return p * FloatOf(static_cast<int32_t>(first)) * FloatOf(static_cast<int32_t>(second));
}

inline float Logistic(float x) { return 1.f / (1.f + Exp(-x)); }

inline float Tanh(float x) {
  const float size = x < 0.f ? -x : x;
  const float large = 1.f - 2.f / (Exp(2.f * size) + 1.f);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  const float small = x + x * z * p;
  return size < 0.625f ? small : x < 0.f ? -large : large;
}

// A quotient of polynomials on -4 to 4 (the one that Eigen and XLA use); beyond, the function is 1 in float.
inline float Erf(float x) {
  const float c = x < -4.f ? -4.f : x > 4.f ? 4.f : x;
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
