// What is known of one strip of groups of one a: statistics for each group, parameters for each
// value or run of values.
#ifndef JAXNORM_STRIP_H_
#define JAXNORM_STRIP_H_

#include <algorithm>
#include <limits>

#include "call.h"
#include "dtype.h"
#include "partition.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

// Null: not given; a scale of 1, and 0 for the others.
template <class Real>
struct Strip {
  const Real *center, *correction, *gain, *shift, *rstd, *along_mean, *total_mean, *scale, *bias;
};

// Sums that a backward pass adds to: two for each group, and two for each parameter (or null).
struct BackwardSums {
  double *along, *total, *scale, *bias;
};

template <class Real>
inline const Real* row_of(const Rows& rows, int64_t a, int64_t first) {
  if (rows.data == nullptr) return nullptr;
  return static_cast<const Real*>(rows.data) + a / rows.share * rows.width + first;
}

template <class Real>
inline Real value_or(const Real* values, int64_t i, Real otherwise) {
  return values == nullptr ? otherwise : values[i];
}

// The correction of a group, which a loop over x leaves out: near the mean x - center is exact, and
// what is summed or multiplied then is corrected once for all values.
template <class Real>
inline Real correction_of(const Strip<Real>& strip, int64_t group) {
  return value_or(strip.correction, group, Real{0});
}

// Whether a loop may subtract the rounded mean, center + correction, in place of both: sixteen-bit
// values lie so far apart that the last place of a float is nothing beside their deviations.
template <class T>
constexpr bool kOneNumber = sizeof(T) == 2;

template <class T>
struct Mean {
  Real<T> center, correction;
};

template <class T>
inline Mean<T> mean_of(const Strip<Real<T>>& strip, int64_t group) {
  const Real<T> center = strip.center[group], correction = correction_of(strip, group);
  return {kOneNumber<T> ? center + correction : center, correction};
}

template <class T, class Value, class Part>
inline Value minus_mean(const Value& x, const Part& center, const Part& correction) {
  if constexpr (kOneNumber<T>) return x - center;
  return x - center - correction;
}

// What (x - center) * gain * scale lacks of ((x - mean) * gain + shift) * scale.
template <class Real>
inline Real shift_of(const Strip<Real>& strip, int64_t group, Real scale) {
  const Real corrected = correction_of(strip, group) * strip.gain[group];
  return (value_or(strip.shift, group, Real{0}) - corrected) * scale;
}

// dx = gain * scale * g - (x - center) * slope - level, of one group.
template <class Real>
struct Projection {
  Real center, gain, slope, level;
};

template <class Real>
inline Projection<Real> projection_of(const Strip<Real>& strip, int64_t group) {
  const double gain = strip.gain[group], rstd = value_or(strip.rstd, group, Real{0});
  const double along = value_or(strip.along_mean, group, Real{0});
  const double total = value_or(strip.total_mean, group, Real{0});
  // Finite where nothing that counts varies, for there it is multiplied by 0.
  constexpr double largest = std::numeric_limits<Real>::max();
  const Real slope =
      static_cast<Real>(std::clamp(gain * (rstd * (rstd * along)), -largest, largest));
  const double level = gain * total - double{slope} * correction_of(strip, group);
  return {strip.center[group], strip.gain[group], slope, static_cast<Real>(level)};
}

inline int64_t offset_of(const View& v, const Partition& p, int64_t a, int64_t r, int64_t g) {
  return ((a * v.R + r) * v.G + g) * p.length;
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_STRIP_H_
