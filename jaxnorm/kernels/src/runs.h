// Long groups with a parameter for each run of T values.
#ifndef JAXNORM_RUNS_H_
#define JAXNORM_RUNS_H_

#include "lanes.h"
#include "long_groups.h"
#include "mask.h"
#include "strip.h"
#include "vector.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

template <class T>
struct Runs : LongGroups<T> {
  using R = Real<T>;

  // Calls each(offset, group, parameter, values, which count) for the runs that lie in the box, or
  // their part in it.
  template <class Each>
  static void for_each_run(const Call& call, const Box& box, Each each) {
    const View& v = call.view;
    for (int64_t r = box.r0; r < box.r1; ++r) {
      const Counted row = counted_of(call, box.a, r);
      for (int64_t group = 0; group < box.groups(); ++group) {
        const int64_t at = offset_of(v, call.partition, box.a, r, box.g0 + group);
        for_each_run_of_t(v, box.l0, box.l1, [&](int64_t begin, int64_t end, int64_t t) {
          const Counted counted = counted_part(row, t, end - begin);
          each(at + begin, group, group * v.S + begin / v.T, end - begin, counted);
        });
      }
    }
  }

  static void apply(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_run(
        call, box,
        [&](int64_t offset, int64_t group, int64_t parameter, int64_t n, const Counted& counted) {
          const T* x = static_cast<const T*>(call.x) + offset;
          T* y = static_cast<T*>(call.y) + offset;
          const R scale = value_or(strip.scale, parameter, R{1});
          const R bias = value_or(strip.bias, parameter, R{0});
          const R center = strip.center[group], factor = strip.gain[group], gain = factor * scale;
          const R shift = shift_of(strip, group, scale);
          if (counted.all) {
            return put_values<R>(y, n, call.streamed, [&, shift = shift + bias](auto at) {
              at.put(y, (at(x) - center) * gain + shift);
            });
          }
          put_values<R>(y, n, call.streamed, [&](auto at) {
            const auto deviation = at(x) - center;
            const auto defined = counting(at, counted.bytes) | finite(deviation * factor);
            at.put(y, kept(defined, deviation * gain + shift) + bias);
          });
        });
  }

  static void sums(const Call& call, const Box& box, const Strip<R>& strip,
                   const BackwardSums& sums) {
    for_each_run(
        call, box,
        [&](int64_t offset, int64_t group, int64_t parameter, int64_t n, const Counted& counted) {
          const T *x = static_cast<const T*>(call.x) + offset,
                  *g = static_cast<const T*>(call.g) + offset;
          TwoSums run = products(x, g, n, counted, strip.center[group], strip.gain[group]);
          const double scale = value_or(strip.scale, parameter, R{1});
          run.first -= correction_of(strip, group) * run.second;
          sums.along[group] += scale * run.first;
          sums.total[group] += scale * run.second;
          if (sums.scale == nullptr) return;
          const double shift = value_or(strip.shift, group, R{0});
          sums.scale[parameter] += strip.gain[group] * run.first + shift * run.second;
          if (sums.bias == nullptr) return;
          sums.bias[parameter] += counted.all ? run.second : total(g, n);
        });
  }

  // sum(g * (x - center)) and sum(g), where the value is defined.
  static TwoSums products(const T* x, const T* g, int64_t n, const Counted& counted, R center,
                          R gain) {
    TwoSums run;
    if (counted.all) {
      sum_values<R>(n, run, [&](auto at, auto& along, auto& total) {
        const auto cotangent = at(g);
        along += cotangent * (at(x) - center);
        total += cotangent;
      });
    } else {
      sum_values<R>(n, run, [&](auto at, auto& along, auto& total) {
        const auto deviation = at(x) - center;
        const auto defined = counting(at, counted.bytes) | finite(deviation * gain);
        const auto cotangent = kept(defined, at(g));
        along += cotangent * kept(defined, deviation);
        total += cotangent;
      });
    }
    return run;
  }

  static double total(const T* g, int64_t n) {
    TwoSums all;
    sum_values<R>(n, all, [&](auto at, auto& sum, auto&) { sum += at(g); });
    return all.first;
  }

  static void backward(const Call& call, const Box& box, const Strip<R>& strip) {
    for_each_run(
        call, box,
        [&](int64_t offset, int64_t group, int64_t parameter, int64_t n, const Counted& counted) {
          const T *x = static_cast<const T*>(call.x) + offset,
                  *g = static_cast<const T*>(call.g) + offset;
          T* dx = static_cast<T*>(call.y) + offset;
          const Projection<R> of = projection_of(strip, group);
          const R gain = of.gain * value_or(strip.scale, parameter, R{1});
          if (counted.all) {
            return each_value<R>(n, [&](auto at) {
              at.put(dx, gain * at(g) - (at(x) - of.center) * of.slope - of.level);
            });
          }
          each_value<R>(n, [&](auto at) {
            const auto deviation = at(x) - of.center;
            const auto counts = counting(at, counted.bytes);
            const auto cotangent = kept(counts | finite(deviation * of.gain), at(g));
            at.put(dx, gain * cotangent - kept(counts, deviation * of.slope + of.level));
          });
        });
  }

  static void parameters(const Call&, const Box&, int64_t, const Strip<R>*, const BackwardSums&) {}
};

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_RUNS_H_
