// Short groups over many r: down the rows, with an accumulator for each contiguous channel. Floats
// are summed in short runs, which are drained into double.
#ifndef JAXNORM_COLUMNS_H_
#define JAXNORM_COLUMNS_H_

#include <initializer_list>

#include "lanes.h"
#include "mask.h"
#include "moments.h"
#include "strip.h"
#include "vector.h"
#include "wide.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kCenterRows = 8;  // rows whose mean is the center that a chunk is measured about
constexpr int64_t kNear = 512;  // values: as many of the next rows fit the first-level cache too

// Values from a row to the one that is fetched while it is worked on.
static inline int64_t rows_ahead(int64_t stride) { return larger(1, kAhead / stride) * stride; }

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

// The same for rows that do not count: `skipped` sums g where the value is not finite.
template <class T>
inline void add_finite_products(const T* x, const T* g, int64_t stride, int rows, int64_t width,
                                const Real<T>* center, const Real<T>* gain, Real<T>* along,
                                Real<T>* total, Real<T>* skipped) {
  each_value<Real<T>>(width, [&](auto at) {
    const auto about = at(center), factor = at(gain);
    auto sum = at(total), product = at(along), rest = at(skipped);
    for (int row = 0; row < rows; ++row) {
      const auto cotangent = at(g + row * stride), deviation = at(x + row * stride) - about;
      const auto defined = finite(deviation * factor);
      const auto kept_cotangent = kept(defined, cotangent);
      sum += kept_cotangent;
      product += kept_cotangent * kept(defined, deviation);
      rest += choose(defined, decltype(sum){}, cotangent);
    }
    at.put(along, product);
    at.put(total, sum);
    at.put(skipped, rest);
  });
}

// The mean of the first rows that count: with a share f of the values, the mean square about it is
// at most 1 + 1 / f times the variance.
template <class T>
inline void rough_center(const Call& call, const Box& box, const Wide& wide, const T* x,
                         Real<T>* center) {
  using R = Real<T>;
  R first[kStrip], sums[kStrip];
  clear(sums, wide.width());
  int64_t rows = 0;
  for_each_wide(call, box, wide, [&](int64_t offset, int64_t n, int64_t width, bool counts) {
    if (!counts) return true;
    const T* from = x + offset;
    if (rows == 0) {
      each_value<R>(wide.columns, [&](auto at) { at.put(first, at(from)); });
      repeat(first, wide);
    }
    const int64_t more = smaller(n, kCenterRows);
    each_value<R>(width, [&](auto at) {
      const auto about = at(first);
      auto sum = at(sums);
      for (int64_t row = 0; row < more; ++row) sum += at(from + row * wide.stride()) - about;
      at.put(sums, sum);
    });
    rows += more * (width / wide.columns);
    return rows < kCenterRows * wide.copies;
  });
  for (int64_t j = wide.columns; j < wide.width(); ++j) sums[j % wide.columns] += sums[j];
  const R share = R{1} / static_cast<R>(rows);
  for (int64_t j = 0; j < wide.columns; ++j) center[j] = first[j] + sums[j] * share;
  repeat(center, wide);
}

template <class T>
struct Columns {
  using R = Real<T>;

  // The moments of each group of the box, 0 where nothing counts.
  static void measure(const Call& call, const Box& box, double* mean, double* m2) {
    const View& v = call.view;
    const Partition& p = call.partition;
    const Wide wide = wide_of(v, p, box);
    const T* x = static_cast<const T*>(call.x) + offset_of(v, p, box.a, box.r0, box.g0);
    if (box_count(call, box) == 0) {
      clear(mean, box.groups());
      return clear(m2, box.groups());
    }

    R center[kStrip], deviations[kStrip], squares[kStrip];
    double deviation[kStrip], square[kStrip];
    clear(deviations, wide.width());
    clear(squares, wide.width());
    clear(deviation, wide.width());
    clear(square, wide.width());
    if (call.about_zero) {
      clear(center, wide.width());
    } else {
      rough_center(call, box, wide, x, center);
    }
    double counts[kStrip];  // of the copies
    clear(counts, wide.copies);
    in_short_runs(
        call, box, wide, true,
        [&](int64_t offset, int rows, int64_t width) {
          const auto add = rows == 1               ? add_deviations<T, 1, 1>
                           : wide.width() <= kNear ? add_deviations<T, kTogether, 1>
                                                   : add_deviations<T, kTogether, 2>;
          add(x + offset, wide.stride(), width, center, deviations, squares);
          for (int64_t copy = 0; copy * wide.columns < width; ++copy) counts[copy] += rows;
        },
        [&] {
          drain(deviations, deviation, wide.width());
          drain(squares, square, wide.width());
        });

    for (int64_t copy = 0; copy < wide.copies && counts[copy] > 0; ++copy) {
      for (int64_t j = copy * wide.columns; j < (copy + 1) * wide.columns; ++j) {
        const Moments m =
            moments_about(center[j], deviation[j], square[j], counts[copy], call.about_zero);
        deviation[j] = m.mean;
        square[j] = m.m2;
      }
    }
    fold(wide, counts, p.length, box.groups(), deviation, square, mean, m2);
  }

  // Merges the copies of the columns, which have summed `counts` rows, and then the columns of each
  // group.
  static void fold(const Wide& wide, const double* counts, int64_t length, int64_t groups,
                   double* means, double* m2s, double* mean, double* m2) {
    double count = counts[0];
    for (int64_t copy = 1; copy < wide.copies && counts[copy] > 0; ++copy) {
      const double *more_mean = means + copy * wide.columns, *more_m2 = m2s + copy * wide.columns;
      merge(wide.columns, count, means, m2s, counts[copy], more_mean, more_m2);
      count += counts[copy];
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
        squares += m2s[j] + count * (difference * difference);
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

    R center[kStrip], gain[kStrip], shift[kStrip], factor[kStrip], bias[kStrip];
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const R scale = value_or(strip.scale, parameter, R{1});
      center[j] = strip.center[group];
      gain[j] = strip.gain[group] * scale;
      shift[j] = shift_of(strip, group, scale) + value_or(strip.bias, parameter, R{0});
    });
    for (R* columns : {center, gain, shift}) repeat(columns, wide);
    if (call.mask.data != nullptr) {
      for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
        factor[j] = strip.gain[group];
        bias[j] = value_or(strip.bias, parameter, R{0});
      });
      repeat(factor, wide);
      repeat(bias, wide);
    }
    const int64_t ahead = rows_ahead(wide.stride());
    for_each_put(call, box, wide, [&](int64_t offset, int64_t width, bool counts) {
      const T* from = x + offset;
      T* to = y + offset;
      if (counts) {
        return put_values<R>(to, width, call.streamed, [&](auto at) {
          at.template fetch<1, 2>(from + ahead);
          at.put(to, (at(from) - at(center)) * at(gain) + at(shift));
        });
      }
      put_values<R>(to, width, call.streamed, [&](auto at) {
        const auto deviation = at(from) - at(center);
        const auto value = deviation * at(gain) + at(shift);
        at.put(to, choose(finite(deviation * at(factor)), value, at(bias)));
      });
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

    R center[kStrip], gain[kStrip], products[kStrip], cotangents[kStrip], rests[kStrip];
    double along[kStrip], total[kStrip], skipped[kStrip];
    for (R* sum : {products, cotangents, rests}) clear(sum, wide.width());
    for (double* sum : {along, total, skipped}) clear(sum, wide.width());
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t) {
      center[j] = strip.center[group];
      gain[j] = strip.gain[group];
    });
    repeat(center, wide);
    repeat(gain, wide);
    in_short_runs(
        call, box, wide, true,
        [&](int64_t at, int rows, int64_t width) {
          const auto add = rows == 1               ? add_products<T, 1, 1>
                           : wide.width() <= kNear ? add_products<T, kTogether, 1>
                                                   : add_products<T, kTogether, 2>;
          add(x + at, g + at, wide.stride(), width, center, products, cotangents);
        },
        [&] {
          drain(products, along, wide.width());
          drain(cotangents, total, wide.width());
        });
    if (call.mask.data != nullptr) {
      in_short_runs(
          call, box, wide, false,
          [&](int64_t at, int rows, int64_t width) {
            add_finite_products(x + at, g + at, wide.stride(), rows, width, center, gain, products,
                                cotangents, rests);
          },
          [&] {
            drain(products, along, wide.width());
            drain(cotangents, total, wide.width());
            drain(rests, skipped, wide.width());
          });
    }

    for (int64_t j = wide.columns; j < wide.width(); ++j) {
      along[j % wide.columns] += along[j];
      total[j % wide.columns] += total[j];
      skipped[j % wide.columns] += skipped[j];
    }
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const double scale = value_or(strip.scale, parameter, R{1});
      along[j] -= correction_of(strip, group) * total[j];
      sums.along[group] += scale * along[j];
      sums.total[group] += scale * total[j];
      if (sums.scale == nullptr) return;
      const double shift = value_or(strip.shift, group, R{0});
      sums.scale[parameter] += strip.gain[group] * along[j] + shift * total[j];
      if (sums.bias != nullptr) sums.bias[parameter] += total[j] + skipped[j];
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

    R center[kStrip], gain[kStrip], slope[kStrip], level[kStrip], factor[kStrip];
    for_each_channel(v, box.groups(), [&](int64_t j, int64_t group, int64_t parameter) {
      const Projection<R> of = projection_of(strip, group);
      center[j] = of.center;
      gain[j] = of.gain * value_or(strip.scale, parameter, R{1});
      slope[j] = of.slope;
      level[j] = of.level;
    });
    for (R* columns : {center, gain, slope, level}) repeat(columns, wide);
    if (call.mask.data != nullptr) {
      for_each_channel(v, box.groups(),
                       [&](int64_t j, int64_t group, int64_t) { factor[j] = strip.gain[group]; });
      repeat(factor, wide);
    }
    const int64_t ahead = rows_ahead(wide.stride());
    for_each_put(call, box, wide, [&](int64_t start, int64_t width, bool counts) {
      const T *of_x = x + start, *of_g = g + start;
      T* to = dx + start;
      if (counts) {
        return put_values<R>(to, width, call.streamed, [&](auto at) {
          at.template fetch<1, 2>(of_x + ahead);
          at.template fetch<1, 2>(of_g + ahead);
          at.put(to, at(gain) * at(of_g) - (at(of_x) - at(center)) * at(slope) - at(level));
        });
      }
      put_values<R>(to, width, call.streamed, [&](auto at) {
        const auto defined = finite((at(of_x) - at(center)) * at(factor));
        at.put(to, at(gain) * kept(defined, at(of_g)));
      });
    });
  }

  static void parameters(const Call&, const Box&, int64_t, const Strip<R>*, const BackwardSums&) {}
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_COLUMNS_H_
