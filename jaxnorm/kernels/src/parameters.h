// Partial sums of the parameters: [rows][2][G * S], or [rows][strips][2][R] by row.
#ifndef JAXNORM_PARAMETERS_H_
#define JAXNORM_PARAMETERS_H_

#include "call.h"
#include "partition.h"
#include "strip.h"
#include "tasks.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kParameters = 512;  // parameters whose partial sums a task adds

inline bool wants_parameters(const Call& call) {
  return call.out_scale != nullptr || call.out_bias != nullptr;
}

inline int64_t parameter_rows(const Call& call) {
  const Partition& p = call.partition;
  const int64_t bundles = p.fused ? call.view.A / p.share * p.bundles : call.view.A;
  if (call.view.by_row) return bundles * p.strips;
  return p.fused ? bundles : bundles * p.row_chunks * (p.shared_pieces ? p.pieces : 1);
}

// The part of a row that a box adds to, zeroed.
inline BackwardSums parameter_sums(const Call& call, int64_t row, const Box& box) {
  if (!wants_parameters(call)) return {};
  const View& v = call.view;
  const Partition& p = call.partition;
  const int64_t width = parameter_count(v);
  double *scale, *bias;
  const auto clear = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) scale[i] = bias[i] = 0;
  };
  if (v.by_row) {
    const int64_t bundle = p.fused ? row : box.a;
    scale = call.parameters + (bundle * p.strips + box.g0 / p.strip) * 2 * width;
    bias = scale + width;
    clear(box.r0, box.r1);
  } else {
    scale = call.parameters + row * 2 * width + box.g0 * v.S;
    bias = scale + width;
    const bool part = !p.shared_pieces && box.length() < p.length;
    const int64_t s0 = part ? box.l0 / v.T : 0, s1 = part ? ceil_div(box.l1, v.T) : v.S;
    for (int64_t group = 0; group < box.groups(); ++group)
      clear(group * v.S + s0, group * v.S + s1);
  }
  return {nullptr, nullptr, scale, call.out_bias == nullptr ? nullptr : bias};
}

template <class R>
inline void reduce_parameters(const Call& call, int64_t task) {
  const int64_t width = parameter_count(call.view), blocks = ceil_div(width, kParameters);
  const int64_t first = task % blocks * kParameters, n = smaller(kParameters, width - first);
  const int64_t owner = task / blocks;
  const int64_t rows = parameter_rows(call) / (call.view.A / call.partition.share);
  double scale[kParameters] = {}, bias[kParameters] = {};
  for (int64_t row = owner * rows; row < (owner + 1) * rows; ++row) {
    const double* partial = call.parameters + row * 2 * width + first;
    for (int64_t i = 0; i < n; ++i) scale[i] += partial[i];
    for (int64_t i = 0; i < n; ++i) bias[i] += partial[width + i];
  }
  R *out_scale = static_cast<R*>(call.out_scale), *out_bias = static_cast<R*>(call.out_bias);
  for (int64_t i = 0; i < n; ++i) {
    if (out_scale != nullptr) out_scale[owner * width + first + i] = static_cast<R>(scale[i]);
    if (out_bias != nullptr) out_bias[owner * width + first + i] = static_cast<R>(bias[i]);
  }
}

inline int64_t parameter_tasks(const Call& call) {
  if (!wants_parameters(call)) return 0;
  const int64_t owners = call.view.A / call.partition.share;
  return owners * ceil_div(parameter_count(call.view), kParameters);
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_PARAMETERS_H_
