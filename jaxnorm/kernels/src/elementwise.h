// Long groups with a parameter for each value.
#ifndef JAXNORM_ELEMENTWISE_H_
#define JAXNORM_ELEMENTWISE_H_

#include "lanes.h"
#include "long_groups.h"
#include "mask.h"
#include "strip.h"
#include "vector.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

template <class T>
struct Elementwise : LongGroups<T> {
  using R = Real<T>;

  // Calls each(offset, group, first parameter, whether it counts) for the rows of the box, of
  // box.length() values.
  template <class Each>
  static void for_each_row(const Call& call, const Box& box, Each each) {
    for (int64_t r = box.r0; r < box.r1; ++r) {
      const bool counts = counted_of(call, box.a, r).all;
      for (int64_t group = 0; group < box.groups(); ++group) {
        const int64_t at = offset_of(call.view, call.partition, box.a, r, box.g0 + group);
        each(at + box.l0, group, group * call.partition.length + box.l0, counts);
      }
    }
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter, bool counts) {
      const T* x = static_cast<const T*>(call.x) + offset;
      T* y = static_cast<T*>(call.y) + offset;
      const R *scale = strip.scale + parameter, *bias = strip.bias + parameter;
      const Mean<T> mean = mean_of<T>(strip, group);
      const R gain = strip.gain[group];
      if (!counts) {
        const R shift = value_or(strip.shift, group, R{0});
        return put_values<R>(y, box.length(), call.streamed, [&](auto at) {
          const auto value = minus_mean<T>(at(x), mean.center, mean.correction) * gain;
          at.put(y, at(scale) * kept(finite(value), value + shift) + at(bias));
        });
      }
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
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter, bool counts) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      const R* scale = strip.scale + parameter;
      const R center = strip.center[group];
      TwoSums row;
      if (counts) {
        sum_values<R>(box.length(), row, [&](auto at, auto& along, auto& total) {
          at.template fetch<1, 2>(x + kAhead);
          const auto scaled = at(scale) * at(g);
          along += scaled * (at(x) - center);
          total += scaled;
        });
      } else {
        const R gain = strip.gain[group];
        sum_values<R>(box.length(), row, [&](auto at, auto& along, auto& total) {
          const auto deviation = at(x) - center;
          const auto defined = finite(deviation * gain);
          const auto scaled = kept(defined, at(scale) * at(g));
          along += scaled * kept(defined, deviation);
          total += scaled;
        });
      }
      sums.along[group] += row.first - correction_of(strip, group) * row.second;
      sums.total[group] += row.second;
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_row(call, box, [&](int64_t offset, int64_t group, int64_t parameter, bool counts) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      T* dx = static_cast<T*>(call.y) + offset;
      const R* scale = strip.scale + parameter;
      const Projection<R> of = projection_of(strip, group);
      if (!counts) {
        return put_values<R>(dx, box.length(), call.streamed, [&](auto at) {
          const auto defined = finite((at(x) - of.center) * of.gain);
          at.put(dx, of.gain * kept(defined, at(scale) * at(g)));
        });
      }
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
    for (int64_t group = 0; group < box.groups(); ++group) {
      const int64_t first = group * call.partition.length + box.l0;
      Row down[kTogether];
      int64_t n = 0;
      const auto add = [&](auto add_some, int64_t row) {
        add_some(down + row, first, call.view.T, box.length(), sums);
      };
      for (int64_t a = 0; a < count; ++a) {
        for (int64_t r = box.r0; r < box.r1; ++r) {
          down[n] = row_of_parameters(call, box, strips[a], group, box.a + a, r);
          if (!counted_of(call, box.a + a, r).all) {
            add(sums.bias != nullptr ? add_finite<true> : add_finite<false>, n);
          } else if (++n == kTogether) {
            add(sums.bias != nullptr ? add_rows<kTogether, true> : add_rows<kTogether, false>, 0);
            n = 0;
          }
        }
      }
      for (int64_t row = 0; row < n; ++row) {
        add(sums.bias != nullptr ? add_rows<1, true> : add_rows<1, false>, row);
      }
    }
  }

 private:
  static constexpr int kTogether = 4;

  struct Row {
    const T *x, *g;
    R center, gain, shift;
  };

  static Row row_of_parameters(const Call& call, const Box& box, const Strip<R>& strip,
                               int64_t group, int64_t a, int64_t r) {
    const int64_t offset = box.l0 + offset_of(call.view, call.partition, a, r, box.g0 + group);
    return {static_cast<const T*>(call.x) + offset, static_cast<const T*>(call.g) + offset,
            strip.center[group], strip.gain[group], shift_of(strip, group, R{1})};
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

  // The same for a row that does not count.
  template <bool kBias>
  static void add_finite(const Row* of, int64_t first, int64_t repeats, int64_t n,
                         const BackwardSums& sums) {
    const Row row = *of;
    R scale[kBlock], bias[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t values = smaller(kBlock, n - begin);
      each_value<R>(values, [&](auto at) {
        const auto g = at(row.g + begin), value = (at(row.x + begin) - row.center) * row.gain;
        const auto defined = finite(value);
        at.put(scale, kept(defined, g) * kept(defined, value + row.shift));
        if constexpr (kBias) at.put(bias, g);
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

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_ELEMENTWISE_H_
