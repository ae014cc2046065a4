// Long groups: along contiguous values, with several accumulators for each sum.
#ifndef JAXNORM_ROWS_H_
#define JAXNORM_ROWS_H_

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

// What the two layouts of long groups share: how they are measured.
template <class T>
struct LongGroups {
  static void measure(const Call& call, const Box& box, double* mean, double* m2) {
    const double length = static_cast<double>(box.length());
    for (int64_t group = 0; group < box.groups(); ++group) {
      for (int64_t r = box.r0; r < box.r1; ++r) {
        const int64_t at = offset_of(call.view, call.partition, box.a, r, box.g0 + group) + box.l0;
        const Moments m =
            measure_row(static_cast<const T*>(call.x) + at, box.length(), call.about_zero);
        merge(1, length * static_cast<double>(r - box.r0), mean + group, m2 + group, length,
              &m.mean, &m.m2);
      }
    }
  }
};

// A parameter for each value.
template <class T>
struct Elementwise : LongGroups<T> {
  using R = Real<T>;

  // Calls each(offset, group, first parameter) for the rows of the box, of box.length() values.
  template <class Each>
  static void for_each_row(const Call& call, const Box& box, Each each) {
    for (int64_t r = box.r0; r < box.r1; ++r) {
      for (int64_t group = 0; group < box.groups(); ++group) {
        const int64_t at = offset_of(call.view, call.partition, box.a, r, box.g0 + group);
        each(at + box.l0, group, group * call.partition.length + box.l0);
      }
    }
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter) {
      const T* x = static_cast<const T*>(call.x) + offset;
      T* y = static_cast<T*>(call.y) + offset;
      const R *scale = strip.scale + parameter, *bias = strip.bias + parameter;
      const Mean<T> mean = mean_of<T>(strip, group);
      const R gain = strip.gain[group];
      // As in columns, gain * scale first: the rounding does not depend on the other rows.
      if (strip.shift == nullptr) {
        put_values<R>(y, box.length(), call.streamed, [&](auto at) {
          at.template fetch<1, 2>(x + kAhead);
          const auto deviation = minus_mean<T>(at(x), mean.center, mean.correction);
          at.put(y, deviation * (at(scale) * gain) + at(bias));
        });
        return;
      }
      const R shift = strip.shift[group];
      put_values<R>(y, box.length(), call.streamed, [&](auto at) {
        at.template fetch<1, 2>(x + kAhead);
        const auto scaled = at(scale);
        const auto deviation = minus_mean<T>(at(x), mean.center, mean.correction);
        at.put(y, deviation * (scaled * gain) + (scaled * shift + at(bias)));
      });
    });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      const R* scale = strip.scale + parameter;
      const R center = strip.center[group];
      TwoSums row;
      sum_values<R>(box.length(), row, [&](auto at, auto& along, auto& total) {
        at.template fetch<1, 2>(x + kAhead);
        const auto scaled = at(scale) * at(g);
        along += scaled * (at(x) - center);
        total += scaled;
      });
      sums.along[group] += row.first - correction_of(strip, group) * row.second;
      sums.total[group] += row.second;
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      T* dx = static_cast<T*>(call.y) + offset;
      const R* scale = strip.scale + parameter;
      const Projection<R> of = projection_of(strip, group);
      put_values<R>(dx, box.length(), call.streamed, [&](auto at) {
        at.template fetch<1, 2>(g + kAhead);
        at.put(dx, of.gain * (at(scale) * at(g)) - (at(x) - of.center) * of.slope - of.level);
      });
    });
  }

  // scale += sum(g * ((x - mean) * gain + shift)), bias += sum(g), down the rows of `count`
  // consecutive a, which have a strip each.
  static void parameters(const Call& call, const Box& box, int64_t count, const Strip<R>* strips,
                         const BackwardSums& sums) {
    if (sums.scale == nullptr) return;
    const int64_t rows = box.r1 - box.r0, all = count * rows;
    for (int64_t group = 0; group < box.groups(); ++group) {
      for (int64_t row = 0; row < all;) {
        const int64_t n = smaller(kTogether, all - row);
        Row down[kTogether];
        for (int64_t i = 0; i < n; ++i) {
          down[i] = row_of_parameters(call, box, strips, group, row + i);
        }
        const int64_t first = group * call.partition.length + box.l0;
        const bool with_bias = sums.bias != nullptr;
        if (n == kTogether) {
          const auto add = with_bias ? add_rows<kTogether, true> : add_rows<kTogether, false>;
          add(down, first, call.view.T, box.length(), sums);
        } else {
          const auto add = with_bias ? add_rows<1, true> : add_rows<1, false>;
          for (int64_t i = 0; i < n; ++i) add(down + i, first, call.view.T, box.length(), sums);
        }
        row += n;
      }
    }
  }

 private:
  static constexpr int kTogether = 4;

  struct Row {
    const T *x, *g;
    R center, gain, shift;
  };

  static Row row_of_parameters(const Call& call, const Box& box, const Strip<R>* strips,
                               int64_t group, int64_t row) {
    const int64_t rows = box.r1 - box.r0, a = row / rows;
    const int64_t offset = box.l0 + offset_of(call.view, call.partition, box.a + a,
                                              box.r0 + row % rows, box.g0 + group);
    return {static_cast<const T*>(call.x) + offset, static_cast<const T*>(call.g) + offset,
            strips[a].center[group], strips[a].gain[group], shift_of(strips[a], group, R{1})};
  }

  template <int kRows, bool kBias>
  static void add_rows(const Row* of, int64_t first, int64_t repeats, int64_t n,
                       const BackwardSums& sums) {
    Row rows[kRows];  // a copy that no store can change
    for (int row = 0; row < kRows; ++row) rows[row] = of[row];
    R scale[kBlock], bias[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t values = smaller(kBlock, n - begin);
      each_value<R>(values, [&](auto at) {
        auto total = at(rows[0].g + begin);
        auto along =
            total * ((at(rows[0].x + begin) - rows[0].center) * rows[0].gain + rows[0].shift);
        for (int row = 1; row < kRows; ++row) {
          const auto g = at(rows[row].g + begin);
          total += g;
          along +=
              g * ((at(rows[row].x + begin) - rows[row].center) * rows[row].gain + rows[row].shift);
        }
        at.put(scale, along);
        if constexpr (kBias) at.put(bias, total);
      });
      add_to(sums.scale, first + begin, repeats, scale, values);
      if constexpr (kBias) add_to(sums.bias, first + begin, repeats, bias, values);
    }
  }

  static constexpr int64_t kBlock = 1024;

  static void add_to(double* sums, int64_t first, int64_t repeats, const R* values, int64_t n) {
    if (repeats == 1) {
      for (int64_t i = 0; i < n; ++i) sums[first + i] += values[i];
    } else {
      for (int64_t i = 0; i < n; ++i) sums[(first + i) / repeats] += values[i];
    }
  }
};

// A parameter for each run of T values.
template <class T>
struct Runs : LongGroups<T> {
  using R = Real<T>;

  // Calls each(offset, group, parameter, values) for the runs that lie in the box, or their part in
  // it.
  template <class Each>
  static void for_each_run(const Call& call, const Box& box, Each each) {
    const View& v = call.view;
    for (int64_t r = box.r0; r < box.r1; ++r) {
      for (int64_t group = 0; group < box.groups(); ++group) {
        const int64_t at = offset_of(v, call.partition, box.a, r, box.g0 + group);
        for (int64_t l = box.l0; l < box.l1;) {
          const int64_t s = l / v.T, end = smaller(box.l1, (s + 1) * v.T);
          each(at + l, group, group * v.S + s, end - l);
          l = end;
        }
      }
    }
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_run(call, box, [&](int64_t offset, int64_t group, int64_t parameter, int64_t n) {
      const T* x = static_cast<const T*>(call.x) + offset;
      T* y = static_cast<T*>(call.y) + offset;
      const R scale = value_or(strip.scale, parameter, R{1});
      const R center = strip.center[group], gain = strip.gain[group] * scale;
      const R shift = shift_of(strip, group, scale) + value_or(strip.bias, parameter, R{0});
      put_values<R>(y, n, call.streamed,
                    [&](auto at) { at.put(y, (at(x) - center) * gain + shift); });
    });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    for_each_run(call, box, [&](int64_t offset, int64_t group, int64_t parameter, int64_t n) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      const R center = strip.center[group];
      TwoSums run;
      sum_values<R>(n, run, [&](auto at, auto& along, auto& total) {
        const auto cotangent = at(g);
        along += cotangent * (at(x) - center);
        total += cotangent;
      });
      const double scale = value_or(strip.scale, parameter, R{1});
      run.first -= correction_of(strip, group) * run.second;
      sums.along[group] += scale * run.first;
      sums.total[group] += scale * run.second;
      if (sums.scale == nullptr) return;
      const double shift = value_or(strip.shift, group, R{0});
      sums.scale[parameter] += strip.gain[group] * run.first + shift * run.second;
      if (sums.bias != nullptr) sums.bias[parameter] += run.second;
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_run(call, box, [&](int64_t offset, int64_t group, int64_t parameter, int64_t n) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      T* dx = static_cast<T*>(call.y) + offset;
      const Projection<R> of = projection_of(strip, group);
      const R gain = of.gain * value_or(strip.scale, parameter, R{1});
      each_value<R>(n, [&](auto at) {
        at.put(dx, gain * at(g) - (at(x) - of.center) * of.slope - of.level);
      });
    });
  }

  static void parameters(const Call&, const Box&, int64_t, const Strip<R>*, const BackwardSums&) {}
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_ROWS_H_
