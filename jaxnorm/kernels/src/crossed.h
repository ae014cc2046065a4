// Columns with a parameter for each row: down the rows for the statistics, along each row for the
// derivatives of its scale and bias. A mask is alike along the rows.
#ifndef JAXNORM_CROSSED_H_
#define JAXNORM_CROSSED_H_

#include "columns.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

template <class T>
struct Crossed : Columns<T> {
  using R = Real<T>;

  // Calls each(offset, r) for the rows of the box, of box.groups() values.
  template <class Each>
  static void for_each_row(const Call& call, const Box& box, Each each) {
    for (int64_t r = box.r0; r < box.r1; ++r) {
      each(offset_of(call.view, call.partition, box.a, r, box.g0), r);
    }
  }

  static void fill_mean(const Strip<R>& strip, int64_t groups, R* center, R* correction) {
    for (int64_t group = 0; group < groups; ++group) {
      const Mean<T> mean = mean_of<T>(strip, group);
      center[group] = mean.center;
      correction[group] = mean.correction;
    }
  }

  static Counted counted_in(const Call& call, const Box& box) {
    Counted counted = counted_of(call, box.a, 0);
    if (counted.bytes != nullptr) counted.bytes += box.g0;
    return counted;
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    const R* gain = strip.gain;
    R center[kStrip], correction[kStrip];
    fill_mean(strip, box.groups(), center, correction);
    const int64_t ahead = rows_ahead(call.view.G);
    const Counted counted = counted_in(call, box);
    for_each_row(call, box, [&](int64_t offset, int64_t r) {
      const T* x = static_cast<const T*>(call.x) + offset;
      T* y = static_cast<T*>(call.y) + offset;
      const R scale = value_or(strip.scale, r, R{1}), bias = value_or(strip.bias, r, R{0});
      if (counted.all) {
        return put_values<R>(y, box.groups(), call.streamed, [&](auto at) {
          at.template fetch<1, 2>(x + ahead);
          const auto deviation = minus_mean<T>(at(x), at(center), at(correction));
          at.put(y, deviation * (at(gain) * scale) + bias);
        });
      }
      put_values<R>(y, box.groups(), call.streamed, [&](auto at) {
        const auto deviation = minus_mean<T>(at(x), at(center), at(correction));
        const auto defined = counting(at, counted.bytes) | finite(deviation * at(gain));
        at.put(y, kept(defined, deviation * (at(gain) * scale)) + bias);
      });
    });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    const R* gain = strip.gain;
    const int64_t ahead = rows_ahead(call.view.G);
    R center[kStrip], correction[kStrip], along[kStrip], total[kStrip];
    fill_mean(strip, box.groups(), center, correction);
    clear(along, box.groups());
    clear(total, box.groups());
    const Counted counted = counted_in(call, box);
    for_each_row(call, box, [&](int64_t offset, int64_t r) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      const R scale = value_or(strip.scale, r, R{1});
      TwoSums row;
      const auto add = [&](auto at, const auto& cotangent, const auto& deviation, auto& of_scale) {
        const auto scaled = cotangent * scale;
        at.put(along, at(along) + scaled * deviation);
        at.put(total, at(total) + scaled);
        of_scale += cotangent * (deviation * at(gain));
      };
      if (counted.all) {
        sum_values<R>(box.groups(), row, [&](auto at, auto& of_scale, auto& of_bias) {
          at.template fetch<1, 2>(x + ahead);
          at.template fetch<1, 2>(g + ahead);
          add(at, at(g), minus_mean<T>(at(x), at(center), at(correction)), of_scale);
          of_bias += at(g);
        });
      } else {
        sum_values<R>(box.groups(), row, [&](auto at, auto& of_scale, auto& of_bias) {
          const auto deviation = minus_mean<T>(at(x), at(center), at(correction));
          const auto defined = counting(at, counted.bytes) | finite(deviation * at(gain));
          add(at, kept(defined, at(g)), kept(defined, deviation), of_scale);
          of_bias += at(g);
        });
      }
      if (sums.scale != nullptr) sums.scale[r] += row.first;
      if (sums.bias != nullptr) sums.bias[r] += row.second;
      if ((r + 1 - box.r0) % kRunRows == 0 || r + 1 == box.r1) {
        drain(along, sums.along, box.groups());
        drain(total, sums.total, box.groups());
      }
    });
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    const R *center = strip.center, *gain = strip.gain;
    R slope[kStrip], level[kStrip];
    for (int64_t group = 0; group < box.groups(); ++group) {
      const Projection<R> of = projection_of(strip, group);
      slope[group] = of.slope;
      level[group] = of.level;
    }
    const Counted counted = counted_in(call, box);
    for_each_row(call, box, [&](int64_t offset, int64_t r) {
      const T *x = static_cast<const T*>(call.x) + offset,
              *g = static_cast<const T*>(call.g) + offset;
      T* dx = static_cast<T*>(call.y) + offset;
      const R scale = value_or(strip.scale, r, R{1});
      if (counted.all) {
        return put_values<R>(dx, box.groups(), call.streamed, [&](auto at) {
          at.put(dx, at(gain) * scale * at(g) - (at(x) - at(center)) * at(slope) - at(level));
        });
      }
      put_values<R>(dx, box.groups(), call.streamed, [&](auto at) {
        const auto deviation = at(x) - at(center);
        const auto counts = counting(at, counted.bytes);
        const auto scaled = kept(counts | finite(deviation * at(gain)), at(g));
        at.put(dx, at(gain) * scale * scaled - kept(counts, deviation * at(slope) + at(level)));
      });
    });
  }
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_CROSSED_H_
