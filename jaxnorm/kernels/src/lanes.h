// Choices by lane: which lanes of a vector count, from a byte each, and which hold finite values.
// The same functions take one value, with a bool in the place of the lanes.
#ifndef JAXNORM_LANES_H_
#define JAXNORM_LANES_H_

#include "vector.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

template <class Value>
using Lanes = decltype(Value{} == Value{});

template <class Real>
inline Lanes<Vector<Real>> bytes_as_lanes(const uint8_t* bytes) {
  using Bytes = typename VectorOf<uint8_t, kWidth<Real>>::type;
  const auto given = load_bits<Bytes>(bytes);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) {
    const auto wide = _mm512_maskz_cvtepu8_epi32(0xffff, bits_as<__m128i>(given));
    return bits_as<Lanes<Vector<Real>>>(wide) != Lanes<Vector<Real>>{};
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Real) == 4) {
    const auto wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(given)));
    return bits_as<Lanes<Vector<Real>>>(wide) != Lanes<Vector<Real>>{};
  }
#endif
  return __builtin_convertvector(given, Lanes<Vector<Real>>) != Lanes<Vector<Real>>{};
}

// Where values count, from bytes; without bytes, nowhere.
template <class Real>
inline Lanes<Vector<Real>> counting(const VectorAt<Real>& at, const uint8_t* bytes) {
  return bytes == nullptr ? Lanes<Vector<Real>>{} : bytes_as_lanes<Real>(bytes + at.i);
}

template <class Real>
inline bool counting(const ValueAt<Real>& at, const uint8_t* bytes) {
  return bytes != nullptr && bytes[at.i] != 0;
}

template <class Value>
inline Lanes<Value> finite(const Value& value) {
  return value - value == Value{};
}

template <class Value>
inline Value choose(const Lanes<Value>& lanes, const Value& value, const Value& otherwise) {
  return lanes ? value : otherwise;
}

// The value where it is chosen, 0 elsewhere.
template <class Value>
inline Value kept(const Lanes<Value>& lanes, const Value& value) {
  return choose<Value>(lanes, value, Value{});
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_LANES_H_
