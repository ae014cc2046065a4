// Reading and writing blocks of each dtype: the arithmetic is in float, or double for double.
#ifndef JAXNORM_DTYPE_H_
#define JAXNORM_DTYPE_H_

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace jaxnorm {
inline namespace JAXNORM_ISA {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct Statistics {
  using type = float;
};
template <>
struct Statistics<double> {
  using type = double;
};
template <class T>
using Real = typename Statistics<T>::type;

constexpr int64_t kBlock = 1024;  // values converted at once, which stay in the first-level cache

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline double widened(double value) { return value; }
static inline float widened(float value) { return value; }
static inline float widened(bfloat16 value) { return float_of(uint32_t{value.bits} << 16); }

static inline float widened(float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t special = (magnitude << 13) | (255u << 23);
  const uint32_t subnormal =
      bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t bits = magnitude < 0x400u ? subnormal : magnitude >= 0x7c00u ? special : normal;
  return float_of(bits | sign);
}

// To the nearest, ties to even; NaN stays NaN.
static inline void narrow(float value, bfloat16& narrowed) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  narrowed.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline void narrow(float value, float16& narrowed) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Adding 1/2 leaves the multiple of 2^-24 in the low bits.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t narrow = magnitude >= 0x477ff000u   ? special
                          : magnitude < (113u << 23) ? subnormal
                                                     : normal;
  narrowed.bits = static_cast<uint16_t>(narrow | ((bits >> 16) & 0x8000u));
}

template <class T>
inline void widen(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = widened(from[i]);
}

template <class T>
inline void narrow(const float* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) narrow(from[i], to[i]);
}

#ifdef __F16C__
template <>
inline void widen(const float16* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) to[i] = widened(from[i]);
}

template <>
inline void narrow(const float* from, int64_t n, float16* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < n; ++i) narrow(from[i], to[i]);
}
#endif

// The values themselves where they need no conversion, else a copy in `buffer`.
template <class T>
inline const Real<T>* read(const T* from, int64_t n, Real<T>* buffer) {
  if constexpr (sizeof(T) == sizeof(Real<T>)) {
    return from;
  } else {
    widen(from, n, buffer);
    return buffer;
  }
}

// Where to compute values, and their conversion from there.
template <class T>
inline Real<T>* target(T* to, Real<T>* buffer) {
  if constexpr (sizeof(T) == sizeof(Real<T>)) {
    return to;
  } else {
    return buffer;
  }
}

template <class T>
inline void write(const Real<T>* buffer, int64_t n, T* to) {
  if constexpr (sizeof(T) != sizeof(Real<T>)) narrow(buffer, n, to);
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_DTYPE_H_
