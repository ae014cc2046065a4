// The dtypes of an input, and what one value is in float (double for double), where arithmetic is
// done.
#ifndef JAXNORM_DTYPE_H_
#define JAXNORM_DTYPE_H_

#include <cstdint>
#include <cstring>

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

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The conversions, for one value and for vectors of them: Word holds uint32_t, Float holds float.
// They work on bits where arithmetic would meet a subnormal float, which a thread may flush to
// zero.

template <class Float, class Word>
inline Float float_of_bfloat16(const Word& bits) {
  return bits_as<Float>(bits << 16);
}

template <class Word, class Float>
inline Word bfloat16_of_float(const Float& value) {  // to nearest, ties to even; NaN stays NaN
  const Word bits = bits_as<Word>(value);
  const Word rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Word quiet = bits | 0x400000u;
  return (value != value ? quiet : rounded) >> 16;
}

template <class Float, class Word>
inline Float float_of_float16(const Word& bits) {
  const Word sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  const Word normal = (magnitude << 13) + (112u << 23);
  const Word special = (magnitude << 13) | (255u << 23);
  // The float 1/2 counts in units of the smallest half.
  const Word subnormal = bits_as<Word>(bits_as<Float>(magnitude + 0x3f000000u) - 0.5f);
  const Word finite = magnitude < 0x400u ? subnormal : normal;
  return bits_as<Float>((magnitude >= 0x7c00u ? special : finite) | sign);
}

template <class Word, class Float>
inline Word float16_of_float(const Float& value) {  // to nearest, ties to even; NaN stays NaN
  const Word bits = bits_as<Word>(value), magnitude = bits & 0x7fffffffu;
  const Word normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const Word subnormal = bits_as<Word>(bits_as<Float>(magnitude) + 0.5f) - 0x3f000000u;
  const Word finite = magnitude < (113u << 23) ? subnormal : normal;
  const Word infinite = (magnitude & 0u) + 0x7c00u, nan = infinite | 0x200u;
  const Word special = magnitude > 0x7f800000u ? nan : infinite;
  return (magnitude >= 0x477ff000u ? special : finite) | ((bits >> 16) & 0x8000u);
}

static inline double widened(double value) { return value; }
static inline float widened(float value) { return value; }
static inline float widened(bfloat16 value) {
  return float_of_bfloat16<float>(uint32_t{value.bits});
}
static inline float widened(float16 value) { return float_of_float16<float>(uint32_t{value.bits}); }

static inline void narrow(double value, double& narrowed) { narrowed = value; }
static inline void narrow(float value, float& narrowed) { narrowed = value; }
static inline void narrow(float value, bfloat16& narrowed) {
  narrowed.bits = static_cast<uint16_t>(bfloat16_of_float<uint32_t>(value));
}
static inline void narrow(float value, float16& narrowed) {
  narrowed.bits = static_cast<uint16_t>(float16_of_float<uint32_t>(value));
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_DTYPE_H_
