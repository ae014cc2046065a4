// What is made on one thread before the tasks start: the scale and the bias for each value, which
// elementwise kernels read, and the counts of a mask.
#ifndef JAXNORM_PREPARE_H_
#define JAXNORM_PREPARE_H_

#include "call.h"
#include "mask.h"
#include "partition.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

// 1 and 0 where there are none, and repeated where they stand for a few values each.
template <class R>
inline void prepare_rows(const Call& call, Rows& rows, R otherwise, R* to) {
  const View& v = call.view;
  const int64_t width = v.G * call.partition.length;
  const int64_t count = rows.data == nullptr ? 1 : v.A / rows.share;
  const R* from = static_cast<const R*>(rows.data);
  for (int64_t i = 0; i < count * width; ++i) to[i] = from == nullptr ? otherwise : from[i / v.T];
  if (from == nullptr) rows.share = v.A;
  rows.data = to;
  rows.width = width;
}

inline int64_t prepared_size(const Call& call, const Rows& rows) {
  if (call.partition.layout != Layout::elementwise) return 0;
  if (rows.data != nullptr && call.view.T == 1) return 0;
  return (rows.data == nullptr ? 1 : call.view.A / rows.share) * call.view.G *
         call.partition.length;
}

inline int64_t bias_size(const Call& call) {
  return call.g == nullptr ? prepared_size(call, call.bias) : 0;
}

template <class R>
inline void prepare(Call& call) {
  R* to = static_cast<R*>(call.prepared);
  const int64_t scales = prepared_size(call, call.scale), biases = bias_size(call);
  if (scales > 0) prepare_rows(call, call.scale, R{1}, to);
  if (biases > 0) prepare_rows(call, call.bias, R{0}, to + scales);
  if (counts_size(call) > 0) count_values(call);
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_PREPARE_H_
