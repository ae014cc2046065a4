// Long groups: along contiguous values, with several accumulators for each sum.
#ifndef JAXNORM_ROWS_H_
#define JAXNORM_ROWS_H_

#include "moments.h"
#include "strip.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 64;
#elif defined(__AVX__)
constexpr int kLanes = 32;
#else
constexpr int kLanes = 16;
#endif
constexpr int kFewLanes = 8;           // for what is left of a row
constexpr int64_t kCenterValues = 32;  // at least so many values make the center of a row
constexpr int64_t kCenterShare = 16;   // and one in so many

// Two sums over i < n of what terms(i, first, second) adds, each in kLanes short runs.
template <class Real, int kWidth, class Terms>
inline int64_t sum_in_lanes(int64_t begin, int64_t n, Terms terms, double& first, double& second) {
  Real firsts[kWidth] = {}, seconds[kWidth] = {};
  int64_t i = begin;
  for (; i + kWidth <= n; i += kWidth) {
    for (int k = 0; k < kWidth; ++k) terms(i + k, firsts[k], seconds[k]);
  }
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) {
      firsts[k] += firsts[k + half];
      seconds[k] += seconds[k + half];
    }
  }
  first += firsts[0];
  second += seconds[0];
  return i;
}

template <class Real, class Terms>
inline void sum_two(int64_t n, Terms terms, double& first, double& second) {
  int64_t i = sum_in_lanes<Real, kLanes>(0, n, terms, first, second);
  if (i + kFewLanes <= n) i = sum_in_lanes<Real, kFewLanes>(i, n, terms, first, second);
  Real firsts = 0, seconds = 0;
  for (; i < n; ++i) terms(i, firsts, seconds);
  first += firsts;
  second += seconds;
}

// Calls each(first, values) for blocks that stay in the cache.
template <class Each>
inline void in_blocks(int64_t n, Each each) {
  for (int64_t i = 0; i < n; i += kBlock) each(i, smaller(kBlock, n - i));
}

template <class T>
inline Real<T> rough_center(const T* x, int64_t n) {
  const int64_t values = smaller(n, smaller(kBlock, larger(kCenterValues, n / kCenterShare)));
  Real<T> buffer[kBlock];
  const Real<T>* row = read(x, values, buffer);
  const Real<T> first = widened(*x);
  double sum = 0, unused = 0;
  sum_two<Real<T>>(
      values, [&](int64_t i, Real<T>& s, Real<T>&) { s += row[i] - first; }, sum, unused);
  return static_cast<Real<T>>(first + sum / static_cast<double>(values));
}

template <class T>
inline Moments measure_row(const T* x, int64_t n, bool about_zero) {
  const Real<T> center = about_zero ? Real<T>{0} : rough_center(x, n);
  Sums sums;
  in_blocks(n, [&](int64_t first, int64_t values) {
    Real<T> buffer[kBlock];
    const Real<T>* row = read(x + first, values, buffer);
    sum_two<Real<T>>(
        values,
        [&](int64_t i, Real<T>& deviations, Real<T>& squares) {
          const Real<T> deviation = row[i] - center;
          deviations += deviation;
          squares += (deviation * kUnit<Real<T>>)*(deviation * kUnit<Real<T>>);
        },
        sums.deviation, sums.square);
  });
  return moments_about(center, sums, static_cast<double>(n), about_zero);
}

// What the two layouts of long groups share: how they are measured and cut into rows.
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

  template <class Each>
  static void for_each_row(const Call& call, const Box& box, Each each) {
    for (int64_t r = box.r0; r < box.r1; ++r) {
      for (int64_t group = 0; group < box.groups(); ++group) {
        const int64_t at = offset_of(call.view, call.partition, box.a, r, box.g0 + group);
        in_blocks(box.length(), [&](int64_t first, int64_t values) {
          const int64_t l = box.l0 + first;
          each(at + l, group, group * call.partition.length + l, values);
        });
      }
    }
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      R from[kBlock], to[kBlock];
      const R* __restrict x = read(static_cast<const T*>(call.x) + at, n, from);
      R* __restrict y = target(static_cast<T*>(call.y) + at, to);
      const R* __restrict scale = strip.scale + parameter, * __restrict bias =
                                                               strip.bias + parameter;
      const R mean = strip.mean[group], gain = strip.gain[group];
      const R shift = value_or(strip.shift, group, R{0});
      for (int64_t i = 0; i < n; ++i) y[i] = ((x[i] - mean) * gain + shift) * scale[i] + bias[i];
      write(y, n, static_cast<T*>(call.y) + at);
    });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    for_each_row(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      R from_x[kBlock], from_g[kBlock];
      const R* x = read(static_cast<const T*>(call.x) + at, n, from_x);
      const R* g = read(static_cast<const T*>(call.g) + at, n, from_g);
      const R* scale = strip.scale + parameter;
      const R mean = strip.mean[group];
      sum_two<R>(
          n,
          [&](int64_t i, R& along, R& total) {
            const R scaled = scale[i] * g[i];
            along += scaled * (x[i] - mean);
            total += scaled;
          },
          sums.along[group], sums.total[group]);
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      R from_x[kBlock], from_g[kBlock], to[kBlock];
      const R* __restrict x = read(static_cast<const T*>(call.x) + at, n, from_x);
      const R* __restrict g = read(static_cast<const T*>(call.g) + at, n, from_g);
      R* __restrict dx = target(static_cast<T*>(call.y) + at, to);
      const R* __restrict scale = strip.scale + parameter;
      const Projection<R> of = projection_of(strip, group);
      for (int64_t i = 0; i < n; ++i) {
        dx[i] = of.gain * (scale[i] * g[i]) - (x[i] - of.mean) * of.slope - of.level;
      }
      write(dx, n, static_cast<T*>(call.y) + at);
    });
  }

  // scale += sum(g * ((x - mean) * gain + shift)), bias += sum(g), down the rows of consecutive a,
  // whose strips follow each other.
  static void parameters(const Call& call, const Box& first, int64_t count, const Strip<R>* strips,
                         const BackwardSums& sums) {
    if (sums.scale == nullptr) return;
    const int64_t rows = first.r1 - first.r0, all = count * rows;
    for (int64_t group = 0; group < first.groups(); ++group) {
      in_blocks(first.length(), [&](int64_t begin, int64_t n) {
        R scale[kBlock], bias[kBlock];
        for (int64_t done = 0; done < all; done += kTogether) {
          const int64_t together = smaller(kTogether, all - done);
          for (int64_t i = 0; i < n; ++i) scale[i] = bias[i] = 0;
          for (int64_t row = done; row < done + together; ++row) {
            const int64_t a = row / rows, r = first.r0 + row % rows;
            const int64_t at =
                offset_of(call.view, call.partition, first.a + a, r, first.g0 + group) + first.l0;
            add_row(call, at + begin, n, strips[a], group, scale, bias);
          }
          const int64_t l = group * call.partition.length + first.l0 + begin;
          add_to_parameters(call.view.T, l, n, scale, bias, sums);
        }
      });
    }
  }

 private:
  static constexpr int64_t kTogether = 4;

  static void add_row(const Call& call, int64_t at, int64_t n, const Strip<R>& strip, int64_t group,
                      R* __restrict scale, R* __restrict bias) {
    R from_x[kBlock], from_g[kBlock];
    const R* __restrict x = read(static_cast<const T*>(call.x) + at, n, from_x);
    const R* __restrict g = read(static_cast<const T*>(call.g) + at, n, from_g);
    const R mean = strip.mean[group], gain = strip.gain[group];
    const R shift = value_or(strip.shift, group, R{0});
    for (int64_t i = 0; i < n; ++i) {
      scale[i] += g[i] * ((x[i] - mean) * gain + shift);
      bias[i] += g[i];
    }
  }

  static void add_to_parameters(int64_t repeats, int64_t first, int64_t n, const R* scale,
                                const R* bias, const BackwardSums& sums) {
    if (repeats == 1) {
      for (int64_t i = 0; i < n; ++i) sums.scale[first + i] += scale[i];
      for (int64_t i = 0; i < n; ++i) sums.bias[first + i] += bias[i];
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      sums.scale[(first + i) / repeats] += scale[i];
      sums.bias[(first + i) / repeats] += bias[i];
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
    for_each_run(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      const R scale = value_or(strip.scale, parameter, R{1});
      const R mean = strip.mean[group], gain = strip.gain[group] * scale;
      const R shift =
          value_or(strip.shift, group, R{0}) * scale + value_or(strip.bias, parameter, R{0});
      in_blocks(n, [&](int64_t first, int64_t values) {
        R from[kBlock], to[kBlock];
        const R* __restrict x = read(static_cast<const T*>(call.x) + at + first, values, from);
        R* __restrict y = target(static_cast<T*>(call.y) + at + first, to);
        for (int64_t i = 0; i < values; ++i) y[i] = (x[i] - mean) * gain + shift;
        write(y, values, static_cast<T*>(call.y) + at + first);
      });
    });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    for_each_run(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      double along = 0, total = 0;
      const R mean = strip.mean[group];
      in_blocks(n, [&](int64_t first, int64_t values) {
        R from_x[kBlock], from_g[kBlock];
        const R* x = read(static_cast<const T*>(call.x) + at + first, values, from_x);
        const R* g = read(static_cast<const T*>(call.g) + at + first, values, from_g);
        sum_two<R>(
            values,
            [&](int64_t i, R& products, R& cotangents) {
              products += g[i] * (x[i] - mean);
              cotangents += g[i];
            },
            along, total);
      });
      const double scale = value_or(strip.scale, parameter, R{1});
      sums.along[group] += scale * along;
      sums.total[group] += scale * total;
      if (sums.scale == nullptr) return;
      const double shift = value_or(strip.shift, group, R{0});
      sums.scale[parameter] += strip.gain[group] * along + shift * total;
      sums.bias[parameter] += total;
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_run(call, box, [&](int64_t at, int64_t group, int64_t parameter, int64_t n) {
      const Projection<R> of = projection_of(strip, group);
      const R gain = of.gain * value_or(strip.scale, parameter, R{1});
      in_blocks(n, [&](int64_t first, int64_t values) {
        R from_x[kBlock], from_g[kBlock], to[kBlock];
        const R* __restrict x = read(static_cast<const T*>(call.x) + at + first, values, from_x);
        const R* __restrict g = read(static_cast<const T*>(call.g) + at + first, values, from_g);
        R* __restrict dx = target(static_cast<T*>(call.y) + at + first, to);
        for (int64_t i = 0; i < values; ++i) {
          dx[i] = gain * g[i] - (x[i] - of.mean) * of.slope - of.level;
        }
        write(dx, values, static_cast<T*>(call.y) + at + first);
      });
    });
  }

  static void parameters(const Call&, const Box&, int64_t, const Strip<R>*, const BackwardSums&) {}
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_ROWS_H_
