// Short groups over many r: down the rows, with an accumulator for each contiguous channel.
//
// Where a row is short, consecutive rows are taken for one wide row, and their copies of a channel
// are merged at the end. Floats are summed in short runs, which are drained into double.
#ifndef JAXNORM_COLUMNS_H_
#define JAXNORM_COLUMNS_H_

#include "moments.h"
#include "strip.h"
#include "vector.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kCenterRows = 8;  // rows whose mean is the center that a chunk is measured about
constexpr int64_t kRunRows = 64;    // rows in a short run
constexpr int64_t kNear = 512;  // values: as many of the next rows fit the first-level cache too
constexpr int kTogether = 4;    // rows added at once

// Values from a row to the one that is fetched while it is worked on.
static inline int64_t rows_ahead(int64_t stride) { return larger(1, kAhead / stride) * stride; }

// A box of columns as wide rows, the last of which may be shorter.
struct Wide {
  int64_t columns;     // of the strip
  int64_t copies;      // of them in a wide row
  int64_t rows, tail;  // whole wide rows; values of the shorter one
  int64_t stride;      // from one wide row to the next
  int64_t width() const { return columns * copies; }
  double count(int64_t copy) const { return static_cast<double>(rows + (copy * columns < tail)); }
  int64_t ahead() const { return rows_ahead(stride); }
};

static inline Wide wide_of(const View& v, const Partition& p, const Box& box) {
  const int64_t columns = box.groups() * p.length, rows = box.r1 - box.r0;
  return {columns, p.copies, rows / p.copies, rows % p.copies * columns, p.copies * v.G * p.length};
}

template <class Value>
inline void clear(Value* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = 0;
}

template <class Real>
inline void drain(Real* run, double* sum, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    sum[j] += run[j];
    run[j] = 0;
  }
}

// Calls add(first row, rows, width) for a few rows at once, and drain() after every short run.
template <class Add, class Drain>
inline void in_short_runs(const Wide& wide, Add add, Drain drain) {
  for (int64_t row = 0; row < wide.rows;) {
    const int64_t end = smaller(wide.rows, row + kRunRows);
    for (; row + kTogether <= end; row += kTogether) add(row, kTogether, wide.width());
    for (; row < end; ++row) add(row, 1, wide.width());
    drain();
  }
  if (wide.tail > 0) {
    add(wide.rows, 1, wide.tail);
    drain();
  }
}

template <class T, int kRows, int kLevel>
inline void add_deviations(const T* x, int64_t stride, int64_t width, const Real<T>* center,
                           Real<T>* deviations, Real<T>* squares) {
  each_value<Real<T>>(width, [&](auto at) {
    const auto about = at(center);
    auto sum = at(x) - about;
    auto square = (sum * kUnit<Real<T>>)*(sum * kUnit<Real<T>>);
    at.template fetch<kRows, kLevel>(x + kRows * stride);
    for (int row = 1; row < kRows; ++row) {
      const auto deviation = at(x + row * stride) - about;
      sum += deviation;
      square += (deviation * kUnit<Real<T>>)*(deviation * kUnit<Real<T>>);
    }
    at.put(deviations, at(deviations) + sum);
    at.put(squares, at(squares) + square);
  });
}

template <class T, int kRows, int kLevel>
inline void add_products(const T* x, const T* g, int64_t stride, int64_t width,
                         const Real<T>* center, Real<T>* along, Real<T>* total) {
  each_value<Real<T>>(width, [&](auto at) {
    const auto about = at(center);
    auto sum = at(g);
    auto product = sum * (at(x) - about);
    at.template fetch<kRows, kLevel>(x + kRows * stride);
    at.template fetch<kRows, kLevel>(g + kRows * stride);
    for (int row = 1; row < kRows; ++row) {
      const auto cotangent = at(g + row * stride);
      sum += cotangent;
      product += cotangent * (at(x + row * stride) - about);
    }
    at.put(along, at(along) + product);
    at.put(total, at(total) + sum);
  });
}

template <class Real>
inline void repeat(Real* columns, const Wide& wide) {
  for (int64_t j = wide.columns; j < wide.width(); ++j) columns[j] = columns[j - wide.columns];
}

// The mean of the first rows: with a share f of the values, the mean square about it is at most
// 1 + 1 / f times the variance.
template <class T>
inline void rough_center(const T* x, const Wide& wide, Real<T>* center) {
  const int64_t rows = smaller(wide.rows, kCenterRows);
  const Real<T> share = Real<T>{1} / static_cast<Real<T>>(rows);
  each_value<Real<T>>(wide.width(), [&](auto at) {
    const auto first = at(x);
    auto sum = first - first;
    for (int64_t row = 1; row < rows; ++row) sum += at(x + row * wide.stride) - first;
    at.put(center, first + sum * share);
  });
}

template <class T>
struct Columns {
  using R = Real<T>;

  // The moments of each group of the box.
  static void measure(const Call& call, const Box& box, double* mean, double* m2) {
    const View& v = call.view;
    const Partition& p = call.partition;
    const Wide wide = wide_of(v, p, box);
    const T* x = static_cast<const T*>(call.x) + offset_of(v, p, box.a, box.r0, box.g0);

    R center[kStrip], deviations[kStrip], squares[kStrip];
    double deviation[kStrip], square[kStrip];
    clear(deviations, wide.width());
    clear(squares, wide.width());
    clear(deviation, wide.width());
    clear(square, wide.width());
    if (call.about_zero) {
      clear(center, wide.width());
    } else {
      rough_center(x, wide, center);
    }
    in_short_runs(
        wide,
        [&](int64_t row, int rows, int64_t width) {
          const auto add = rows == 1               ? add_deviations<T, 1, 1>
                           : wide.width() <= kNear ? add_deviations<T, kTogether, 1>
                                                   : add_deviations<T, kTogether, 2>;
          add(x + row * wide.stride, wide.stride, width, center, deviations, squares);
        },
        [&] {
          drain(deviations, deviation, wide.width());
          drain(squares, square, wide.width());
        });

    for (int64_t copy = 0; copy < wide.copies; ++copy) {
      const double count = wide.count(copy);
      for (int64_t j = copy * wide.columns; j < (copy + 1) * wide.columns; ++j) {
        const Moments m = moments_about(center[j], deviation[j], square[j], count, call.about_zero);
        deviation[j] = m.mean;
        square[j] = m.m2;
      }
    }
    fold(wide, p.length, box.groups(), deviation, square, mean, m2);
  }

  // Merges the copies of the columns, and then the columns of each group.
  static void fold(const Wide& wide, int64_t length, int64_t groups, double* means, double* m2s,
                   double* mean, double* m2) {
    double rows = wide.count(0);
    for (int64_t copy = 1; copy < wide.copies; ++copy) {
      const double *more_mean = means + copy * wide.columns, *more_m2 = m2s + copy * wide.columns;
      merge(wide.columns, rows, means, m2s, wide.count(copy), more_mean, more_m2);
      rows += wide.count(copy);
    }
    if (length == 1) {
      for (int64_t group = 0; group < groups; ++group) mean[group] = means[group];
      for (int64_t group = 0; group < groups; ++group) m2[group] = m2s[group];
      return;
    }
    for (int64_t group = 0; group < groups; ++group) {
      const double first = means[group * length];
      double sum = 0, squares = 0;
      for (int64_t j = group * length; j < (group + 1) * length; ++j) sum += means[j] - first;
      mean[group] = first + sum / static_cast<double>(length);
      for (int64_t j = group * length; j < (group + 1) * length; ++j) {
        const double difference = means[j] - mean[group];
        squares += m2s[j] + rows * (difference * difference);
      }
      m2[group] = squares;
    }
  }

  // Calls each(column, group, parameter) for the columns of the box.
  template <class Each>
  static void for_each_channel(const View& v, int64_t groups, Each each) {
    int64_t column = 0;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t s = 0; s < v.S; ++s) {
        for (int64_t t = 0; t < v.T; ++t) each(column++, group, group * v.S + s);
      }
    }
  }

  // y = ((x - mean) * gain + shift) * scale + bias
  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    const View& v = call.view;
    const Wide wide = wide_of(v, call.partition, box);
    const int64_t offset = offset_of(v, call.partition, box.a, box.r0, box.g0);
    const T* x = static_cast<const T*>(call.x) + offset;
    T* y = static_cast<T*>(call.y) + offset;

    R center[kStrip], gain[kStrip], shift[kStrip];
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const R scale = value_or(strip.scale, parameter, R{1});
      center[j] = strip.center[group];
      gain[j] = strip.gain[group] * scale;
      shift[j] = shift_of(strip, group, scale) + value_or(strip.bias, parameter, R{0});
    });
    repeat(center, wide);
    repeat(gain, wide);
    repeat(shift, wide);
    for (int64_t row = 0; row < wide.rows; ++row) {
      apply_row(call, wide, row, wide.width(), x, y, center, gain, shift);
    }
    if (wide.tail > 0) apply_row(call, wide, wide.rows, wide.tail, x, y, center, gain, shift);
  }

  static void apply_row(const Call& call, const Wide& wide, int64_t row, int64_t width, const T* x,
                        T* y, const R* center, const R* gain, const R* shift) {
    x += row * wide.stride;
    y += row * wide.stride;
    put_values<R>(y, width, call.streamed, [&](auto at) {
      at.template fetch<1, 2>(x + wide.ahead());
      at.put(y, (at(x) - at(center)) * at(gain) + at(shift));
    });
  }

  // along += sum(scale * g * (x - mean)), total += sum(scale * g) of each group;
  // scale += sum(g * ((x - mean) * gain + shift)), bias += sum(g) of each parameter.
  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    const View& v = call.view;
    const Wide wide = wide_of(v, call.partition, box);
    const int64_t offset = offset_of(v, call.partition, box.a, box.r0, box.g0);
    const T *x = static_cast<const T*>(call.x) + offset,
            *g = static_cast<const T*>(call.g) + offset;

    R center[kStrip], products[kStrip], cotangents[kStrip];
    double along[kStrip], total[kStrip];
    clear(products, wide.width());
    clear(cotangents, wide.width());
    clear(along, wide.width());
    clear(total, wide.width());
    for_each_channel(v, box.groups(),
                     [&](int64_t j, int64_t group, int64_t) { center[j] = strip.center[group]; });
    repeat(center, wide);
    in_short_runs(
        wide,
        [&](int64_t row, int rows, int64_t width) {
          const auto add = rows == 1               ? add_products<T, 1, 1>
                           : wide.width() <= kNear ? add_products<T, kTogether, 1>
                                                   : add_products<T, kTogether, 2>;
          const int64_t at = row * wide.stride;
          add(x + at, g + at, wide.stride, width, center, products, cotangents);
        },
        [&] {
          drain(products, along, wide.width());
          drain(cotangents, total, wide.width());
        });

    for (int64_t j = wide.columns; j < wide.width(); ++j) {
      along[j % wide.columns] += along[j];
      total[j % wide.columns] += total[j];
    }
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const double scale = value_or(strip.scale, parameter, R{1});
      along[j] -= correction_of(strip, group) * total[j];
      sums.along[group] += scale * along[j];
      sums.total[group] += scale * total[j];
      if (sums.scale == nullptr) return;
      const double shift = value_or(strip.shift, group, R{0});
      sums.scale[parameter] += strip.gain[group] * along[j] + shift * total[j];
      if (sums.bias != nullptr) sums.bias[parameter] += total[j];
    });
  }

  // dx = gain * (scale * g - total_mean - (x - mean) * rstd^2 * along_mean)
  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    const View& v = call.view;
    const Wide wide = wide_of(v, call.partition, box);
    const int64_t offset = offset_of(v, call.partition, box.a, box.r0, box.g0);
    const T *x = static_cast<const T*>(call.x) + offset,
            *g = static_cast<const T*>(call.g) + offset;
    T* dx = static_cast<T*>(call.y) + offset;

    R center[kStrip], gain[kStrip], slope[kStrip], level[kStrip];
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const Projection<R> of = projection_of(strip, group);
      center[j] = of.center;
      gain[j] = of.gain * value_or(strip.scale, parameter, R{1});
      slope[j] = of.slope;
      level[j] = of.level;
    });
    repeat(center, wide);
    repeat(gain, wide);
    repeat(slope, wide);
    repeat(level, wide);
    const auto backward_row = [&](int64_t row, int64_t width) {
      const T *of_x = x + row * wide.stride, *of_g = g + row * wide.stride;
      T* to = dx + row * wide.stride;
      put_values<R>(to, width, call.streamed, [&](auto at) {
        at.template fetch<1, 2>(of_x + wide.ahead());
        at.template fetch<1, 2>(of_g + wide.ahead());
        at.put(to, at(gain) * at(of_g) - (at(of_x) - at(center)) * at(slope) - at(level));
      });
    };
    for (int64_t row = 0; row < wide.rows; ++row) backward_row(row, wide.width());
    if (wide.tail > 0) backward_row(wide.rows, wide.tail);
  }

  static void parameters(const Call&, const Box&, int64_t, const Strip<R>*, const BackwardSums&) {}
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_COLUMNS_H_
