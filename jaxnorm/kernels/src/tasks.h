// The tasks of an operation: which box of the input, or which bundle of a, each of them does.
#ifndef JAXNORM_TASKS_H_
#define JAXNORM_TASKS_H_

#include "call.h"
#include "partition.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

inline int64_t chunk_tasks(const Call& call) {
  return call.view.A * call.partition.strips * chunks_of(call.partition);
}

// The strip is the fastest index, so that tasks go through memory in order.
inline int64_t strip_of_task(const Call& call, int64_t task) {
  return task % call.partition.strips;
}
inline int64_t chunk_of_task(const Call& call, int64_t task) {  // of all a
  return task / call.partition.strips;
}

inline Box box_of_task(const Call& call, int64_t task) {
  const int64_t chunk = chunk_of_task(call, task), chunks = chunks_of(call.partition);
  return chunk_box(call.view, call.partition, chunk / chunks, strip_of_task(call, task),
                   chunk % chunks);
}

inline int64_t bundle_tasks(const Call& call) {
  const Partition& p = call.partition;
  return call.view.A / p.share * p.bundles * p.strips;
}

// The a of a fused task, which share parameters.
struct Bundle {
  int64_t a0, a1, strip, row;
};

inline Bundle bundle_of_task(const Call& call, int64_t task) {
  const Partition& p = call.partition;
  const int64_t row = chunk_of_task(call, task);
  const int64_t begin = row / p.bundles * p.share, a0 = begin + row % p.bundles * p.bundle;
  return {a0, smaller(begin + p.share, a0 + p.bundle), strip_of_task(call, task), row};
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_TASKS_H_
