// Counts, means and sums of squared deviations, and their merge.
//
// Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
// recommendations", 1983: the corrected two-pass algorithm (1.7) and the pairwise merge (2.1).
#ifndef JAXNORM_MOMENTS_H_
#define JAXNORM_MOMENTS_H_

#include <cstdint>

namespace jaxnorm {
inline namespace JAXNORM_ISA {

// Squares are summed in this unit: float then holds those of 1e-18 and of 1e15.
template <class Real>
constexpr Real kUnit = sizeof(Real) == sizeof(float) ? 64 : 1;

// One set of values: mean and m2 = sum((x - mean)^2).
struct Moments {
  double mean, m2;
};

static inline double not_negative(double square) { return square < 0 ? 0 : square; }  // NaN stays

template <class Real>
inline Moments moments_about(Real center, double deviation, double square, double count,
                             bool about_zero) {
  constexpr double unit = 1.0 / (double{kUnit<Real>} * kUnit<Real>);
  if (about_zero) return {0, square * unit};
  const double correction = deviation / count;
  return {center + correction, not_negative(square * unit - deviation * correction)};
}

// The variance. It is infinite where the sum of squares in their unit overflows Real, whatever the
// doubles hold: what counts as an overflow is then the same in both forms.
template <class Real>
inline Real variance(double m2, double count) {
  constexpr double largest = sizeof(Real) == sizeof(float) ? __FLT_MAX__ : __DBL_MAX__;
  constexpr double most = largest / (double{kUnit<Real>} * kUnit<Real>);
  return m2 > most ? static_cast<Real>(__builtin_inf()) : static_cast<Real>(m2 / count);
}

// Merges `count` values of every set with `more` others.
inline void merge(int64_t sets, double count, double* mean, double* m2, double more,
                  const double* more_mean, const double* more_m2) {
  if (count == 0) {
    for (int64_t i = 0; i < sets; ++i) mean[i] = more_mean[i], m2[i] = more_m2[i];
    return;
  }
  const double weight = more / (count + more), between = count * weight;
  for (int64_t i = 0; i < sets; ++i) {
    const double difference = more_mean[i] - mean[i];
    mean[i] += difference * weight;
    m2[i] += more_m2[i] + difference * difference * between;
  }
}

// 1 / sqrt(var + epsilon), and 0 where nothing varies and epsilon is 0.
template <class Real>
inline Real reciprocal_deviation(Real var, double epsilon) {
  const double power = var + epsilon;
  return static_cast<Real>(1 / __builtin_sqrt(power == 0 ? __builtin_inf() : power));
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_MOMENTS_H_
