// Long groups are measured along contiguous values, with several accumulators for each sum.
#ifndef JAXNORM_LONG_GROUPS_H_
#define JAXNORM_LONG_GROUPS_H_

#include "lanes.h"
#include "mask.h"
#include "moments.h"
#include "strip.h"
#include "vector.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kShortRow = 128;    // values: measured about the mean of all of them
constexpr int64_t kCenterShare = 16;  // of a longer row, about the mean of one in so many

// The mean of the first values, or of all: see columns.h.
template <class T>
inline Real<T> rough_center(const T* x, int64_t n) {
  const Real<T> first = widened(*x);
  const int64_t values = n <= kShortRow ? n : n / kCenterShare;
  TwoSums sums;
  sum_values<Real<T>>(values, sums, [&](auto at, auto& sum, auto&) { sum += at(x) - first; });
  return static_cast<Real<T>>(first + sums.first / static_cast<double>(values));
}

template <class T>
inline Moments measure_row(const T* x, int64_t n, bool about_zero) {
  const Real<T> center = about_zero ? Real<T>{0} : rough_center(x, n);
  TwoSums sums;
  sum_values<Real<T>>(n, sums, [&](auto at, auto& deviations, auto& squares) {
    const auto deviation = at(x) - center;
    deviations += deviation;
    squares += (deviation * kUnit<Real<T>>)*(deviation * kUnit<Real<T>>);
  });
  return moments_about(center, sums.first, sums.second, static_cast<double>(n), about_zero);
}

// The mean of the first of `values` values that count. each_part calls its argument for the parts
// of a row, with the bytes of their mask.
template <class T, class EachPart>
inline Real<T> rough_center_of(EachPart each_part, int64_t values) {
  const int64_t most = values <= kShortRow ? values : values / kCenterShare;
  Real<T> first = 0;
  int64_t seen = 0;
  TwoSums sums;
  each_part([&](const T* x, const uint8_t* bytes, int64_t n) {
    for (int64_t i = 0; i < n && seen < most; i += kShortRow) {
      const int64_t some = smaller(kShortRow, n - i);
      for (int64_t j = i; seen == 0 && j < i + some; ++j) {
        if (bytes[j] == 0) continue;
        first = widened(x[j]);
        break;
      }
      seen += bytes_that_count(bytes + i, some);
      sum_values<Real<T>>(some, sums, [&](auto at, auto& sum, auto&) {
        sum += kept(counting(at, bytes + i), at(x + i) - first);
      });
    }
  });
  return static_cast<Real<T>>(first + sums.first / static_cast<double>(seen));
}

// The same for the values that count, of a row with a mask along T: the part [l0, l1) of it. The
// count is given back too.
template <class T>
inline Moments measure_counted(const Call& call, const Box& box, const T* x, const uint8_t* bytes,
                               double& count) {
  const auto each_part = [&](auto each) {
    for_each_run_of_t(call.view, box.l0, box.l1, [&](int64_t begin, int64_t end, int64_t t) {
      each(x + (begin - box.l0), bytes + t, end - begin);
    });
  };
  int64_t values = 0;
  each_part([&](const T*, const uint8_t* of, int64_t n) { values += bytes_that_count(of, n); });
  count = static_cast<double>(values);
  if (values == 0) return {0, 0};
  const Real<T> center = call.about_zero ? Real<T>{0} : rough_center_of<T>(each_part, values);
  TwoSums sums;
  each_part([&](const T* from, const uint8_t* of, int64_t n) {
    sum_values<Real<T>>(n, sums, [&](auto at, auto& deviations, auto& squares) {
      const auto deviation = kept(counting(at, of), at(from) - center);
      deviations += deviation;
      squares += (deviation * kUnit<Real<T>>)*(deviation * kUnit<Real<T>>);
    });
  });
  return moments_about(center, sums.first, sums.second, count, call.about_zero);
}

// What the two layouts of long groups share: how they are measured.
template <class T>
struct LongGroups {
  static void measure(const Call& call, const Box& box, double* mean, double* m2) {
    for (int64_t group = 0; group < box.groups(); ++group) {
      double count = 0;
      mean[group] = m2[group] = 0;
      for (int64_t r = box.r0; r < box.r1; ++r) {
        const int64_t at = offset_of(call.view, call.partition, box.a, r, box.g0 + group) + box.l0;
        const T* x = static_cast<const T*>(call.x) + at;
        const Counted counted = counted_part(counted_of(call, box.a, r), 0, call.view.T);
        double more = 0;
        Moments m = {0, 0};
        if (counted.all) {
          more = static_cast<double>(box.length());
          m = measure_row(x, box.length(), call.about_zero);
        } else if (counted.bytes != nullptr) {
          m = measure_counted(call, box, x, counted.bytes, more);
        }
        if (more == 0) continue;
        merge(1, count, mean + group, m2 + group, more, &m.mean, &m.m2);
        count += more;
      }
    }
  }
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_LONG_GROUPS_H_
