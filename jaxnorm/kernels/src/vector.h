// Loops over contiguous values in vectors of the instruction set, with a conversion in every load
// and store. A loop's body is a generic lambda over `at`, which reads and writes a vector of
// values, or one of those that are left at the end:
//
//   each_value<float>(n, [&](auto at) { at.put(y, (at(x) - mean) * gain); });
#ifndef JAXNORM_VECTOR_H_
#define JAXNORM_VECTOR_H_

#include "dtype.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace jaxnorm {
inline namespace JAXNORM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Value, int kBytes>
struct VectorOf {
  typedef Value type __attribute__((vector_size(kBytes)));
};
template <class Real>
using Vector = typename VectorOf<Real, kVectorBytes>::type;
template <class Real>
constexpr int kWidth = kVectorBytes / sizeof(Real);

using Words = VectorOf<uint32_t, kVectorBytes>::type;
using Halves = VectorOf<uint16_t, kVectorBytes / 2>::type;

template <class To, class From>
inline To load_bits(const From* from) {
  To to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

static inline Vector<double> load(const double* from) { return load_bits<Vector<double>>(from); }
static inline Vector<float> load(const float* from) { return load_bits<Vector<float>>(from); }

// Zero-extended and truncated.
static inline Words words_of(const Halves& halves) {
#if defined(__AVX512F__)
  return bits_as<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(halves)));
#elif defined(__AVX2__)
  return bits_as<Words>(_mm256_cvtepu16_epi32(bits_as<__m128i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}

static inline Halves halves_of(const Words& words) {
#if defined(__AVX512F__)
  return bits_as<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i both = _mm256_packus_epi32(bits_as<__m256i>(words), bits_as<__m256i>(words));
  return bits_as<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x08)));
#else
  return __builtin_convertvector(words, Halves);
#endif
}

static inline Vector<float> load(const bfloat16* from) {
  return float_of_bfloat16<Vector<float>>(words_of(load_bits<Halves>(from)));
}

static inline Vector<float> load(const float16* from) {
#if defined(__AVX512F__)
  return bits_as<Vector<float>>(_mm512_maskz_cvtph_ps(0xffff, load_bits<__m256i>(from)));
#elif defined(__F16C__)
  return bits_as<Vector<float>>(_mm256_cvtph_ps(load_bits<__m128i>(from)));
#else
  return float_of_float16<Vector<float>>(words_of(load_bits<Halves>(from)));
#endif
}

static inline Vector<double> narrowed(const Vector<double>& values, const double*) {
  return values;
}

static inline Vector<float> narrowed(const Vector<float>& values, const float*) { return values; }

static inline Halves narrowed(const Vector<float>& values, const bfloat16*) {
  return halves_of(bfloat16_of_float<Words>(values));
}

static inline Halves narrowed(const Vector<float>& values, const float16*) {
#if defined(__AVX512F__)
  return bits_as<Halves>(
      _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(values), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return bits_as<Halves>(_mm256_cvtps_ph(bits_as<__m256>(values), _MM_FROUND_TO_NEAREST_INT));
#else
  return halves_of(float16_of_float<Words>(values));
#endif
}

constexpr int64_t kAhead = 4096;  // values that are worked on while the next are fetched

// A store around the cache, of aligned values that are too many to be read from it later.
template <class Value>
inline void stream(const Value& values, void* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof values == 64) {
    return _mm512_stream_si512(static_cast<__m512i*>(to), bits_as<__m512i>(values));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof values == 32) {
    return _mm256_stream_si256(static_cast<__m256i*>(to), bits_as<__m256i>(values));
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof values == 16) {
    return _mm_stream_si128(static_cast<__m128i*>(to), bits_as<__m128i>(values));
  }
#endif
  std::memcpy(to, &values, sizeof values);
}

// What was streamed is seen by whoever sees that the task has ended.
static inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class Real>
struct VectorAt {
  using Value = Vector<Real>;
  int64_t i;
  template <class T>
  Value operator()(const T* from) const {
    return load(from + i);
  }
  template <class T>
  void put(T* to, const Value& values) const {
    const auto bits = narrowed(values, to);
    std::memcpy(static_cast<void*>(to + i), &bits, sizeof bits);
  }
  // Asks for kRows vectors of what comes `ahead` of the values, for the cache of that level.
  template <int kRows, int kLevel, class T>
  void fetch(const T* ahead) const {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      __builtin_prefetch(ahead + kRows * i + row * kWidth<Real>, 0, 4 - kLevel);
    }
  }
};

template <class Real>
struct StreamAt : VectorAt<Real> {
  template <class T>
  void put(T* to, const Vector<Real>& values) const {
    stream(narrowed(values, to), to + this->i);
  }
};

template <class Real>
struct ValueAt {
  using Value = Real;
  int64_t i;
  template <class T>
  Value operator()(const T* from) const {
    return widened(from[i]);
  }
  template <class T>
  void put(T* to, Value value) const {
    narrow(value, to[i]);
  }
  template <int kRows, int kLevel, class T>
  void fetch(const T*) const {}
};

template <class Real, class Body>
inline void each_value(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kWidth<Real> <= n; i += kWidth<Real>) body(VectorAt<Real>{i});
  for (; i < n; ++i) body(ValueAt<Real>{i});
}

// The same for a body that puts all values of `to` and nothing else.
template <class Real, class T, class Body>
inline void put_values(T* to, int64_t n, bool streamed, Body body) {
  constexpr uintptr_t alignment = kWidth<Real> * sizeof(T);
  if (!streamed || reinterpret_cast<uintptr_t>(to) % alignment != 0) {
    return each_value<Real>(n, body);
  }
  int64_t i = 0;
  for (; i + kWidth<Real> <= n; i += kWidth<Real>) body(StreamAt<Real>{{i}});
  for (; i < n; ++i) body(ValueAt<Real>{i});
}

// Two sums in short runs, drained into double.
struct TwoSums {
  double first = 0, second = 0;
};

constexpr int kVectors = 4;   // accumulators of each sum
constexpr int64_t kRun = 64;  // values in a short run of an accumulator

// Halves are added to halves.
template <class Real, int kBytes>
inline Real sum_of(const typename VectorOf<Real, kBytes>::type& lanes) {
  if constexpr (kBytes == sizeof(Real)) {
    return lanes[0];
  } else {
    typename VectorOf<Real, kBytes / 2>::type low, high;
    std::memcpy(&low, &lanes, kBytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + kBytes / 2, kBytes / 2);
    return sum_of<Real, kBytes / 2>(low + high);
  }
}

// Adds what body(at, first, second) adds to its two sums for every value.
template <class Real, class Body>
inline void sum_values(int64_t n, TwoSums& sums, Body body) {
  constexpr int64_t step = kWidth<Real> * kVectors;
  int64_t i = 0;
  while (i + kWidth<Real> <= n) {
    Vector<Real> first[kVectors] = {}, second[kVectors] = {};
    const int64_t end = n < i + step * kRun ? n : i + step * kRun;
    for (; i + step <= end; i += step) {
      for (int k = 0; k < kVectors; ++k) {
        body(VectorAt<Real>{i + k * kWidth<Real>}, first[k], second[k]);
      }
    }
    for (; i + kWidth<Real> <= end; i += kWidth<Real>) {
      body(VectorAt<Real>{i}, first[0], second[0]);
    }
    sums.first += sum_of<Real, kVectorBytes>((first[0] + first[1]) + (first[2] + first[3]));
    sums.second += sum_of<Real, kVectorBytes>((second[0] + second[1]) + (second[2] + second[3]));
  }
  Real first = 0, second = 0;
  for (; i < n; ++i) body(ValueAt<Real>{i}, first, second);
  sums.first += first;
  sums.second += second;
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_VECTOR_H_
