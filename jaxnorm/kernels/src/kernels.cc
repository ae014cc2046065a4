// The operations as phases of tasks, compiled once for each instruction set (JAXNORM_ISA).
//
// Where a strip of one a fits the cache, a task does all of it, and memory is read once (fused);
// otherwise the tasks of a phase do a chunk each, and the next phase merges what they found.

#include "call.h"
#include "columns.h"
#include "crossed.h"
#include "elementwise.h"
#include "mask.h"
#include "moments.h"
#include "parameters.h"
#include "partition.h"
#include "prepare.h"
#include "runs.h"
#include "strip.h"
#include "tasks.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {
namespace {

constexpr int64_t kBatch = 4;           // a whose parameters are summed together
constexpr int64_t kStreamed = 1 << 23;  // bytes of an output that no cache would hold

inline double at_least_one(double count) { return count < 1 ? 1 : count; }

template <class T, class Layout>
struct Operations {
  using R = Real<T>;

  static Strip<R> strip_of(const Call& call, const Box& box) {
    const bool expanded = call.partition.layout == jaxnorm::Layout::elementwise;
    const int64_t each = expanded ? call.partition.length : call.view.S;
    const int64_t first = call.view.by_row ? 0 : box.g0 * each;
    const auto row = [&](const Rows& rows) { return row_of<R>(rows, box.a, box.g0); };
    return {row(call.center),
            row(call.correction),
            row(call.gain),
            row(call.shift),
            row(call.rstd),
            row(call.along_mean),
            row(call.total_mean),
            row_of<R>(call.scale, box.a, first),
            row_of<R>(call.bias, box.a, first)};
  }

  // Measuring.

  static void write_moments(const Call& call, const Box& box, const double* mean,
                            const double* m2) {
    const int64_t at = box.a * call.view.G + box.g0;
    R *centers = static_cast<R*>(call.out_center) + at, *vars = static_cast<R*>(call.out_var) + at;
    R* corrections = static_cast<R*>(call.out_correction);
    for (int64_t group = 0; group < box.groups(); ++group) {
      const double count = group_count(call, box.a, box.g0 + group);
      centers[group] = count == 0 ? R{0} : static_cast<R>(mean[group]);
      vars[group] = count == 0 ? R{0} : variance<R>(m2[group], count);
    }
    R* counts = static_cast<R*>(call.out_count);
    for (int64_t group = 0; counts != nullptr && group < box.groups(); ++group) {
      counts[at + group] = static_cast<R>(group_count(call, box.a, box.g0 + group));
    }
    if (corrections == nullptr) return;
    for (int64_t group = 0; group < box.groups(); ++group) {
      const bool none = group_count(call, box.a, box.g0 + group) == 0;
      corrections[at + group] = none ? R{0} : static_cast<R>(mean[group] - centers[group]);
    }
  }

  static void measure_strip(const Call& call, int64_t a, int64_t strip) {
    double mean[kStrip], m2[kStrip], more_mean[kStrip], more_m2[kStrip];
    double count = 0;
    for (int64_t chunk = 0; chunk < chunks_of(call.partition); ++chunk) {
      const Box box = chunk_box(call.view, call.partition, a, strip, chunk);
      const double more = box_count(call, box);
      Layout::measure(call, box, more_mean, more_m2);
      merge(box.groups(), count, mean, m2, more, more_mean, more_m2);
      count += more;
    }
    write_moments(call, strip_box(call.view, call.partition, a, strip), mean, m2);
  }

  static void measure_bundle(const Call& call, int64_t task) {
    const Bundle bundle = bundle_of_task(call, task);
    for (int64_t a = bundle.a0; a < bundle.a1; ++a) measure_strip(call, a, bundle.strip);
  }

  // Moments of chunks: [A * chunks][2][G].
  static double* chunk_moments(const Call& call, int64_t chunk, const Box& box) {
    return call.moments + chunk * 2 * call.view.G + box.g0;
  }

  static void measure_chunk(const Call& call, int64_t task) {
    const Box box = box_of_task(call, task);
    double* mean = chunk_moments(call, chunk_of_task(call, task), box);
    Layout::measure(call, box, mean, mean + call.view.G);
  }

  static void merge_chunks(const Call& call, int64_t task) {
    const int64_t strip = strip_of_task(call, task), a = chunk_of_task(call, task);
    const int64_t chunks = chunks_of(call.partition);
    double mean[kStrip], m2[kStrip], count = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Box box = chunk_box(call.view, call.partition, a, strip, chunk);
      const double *moments = chunk_moments(call, a * chunks + chunk, box),
                   more = box_count(call, box);
      merge(box.groups(), count, mean, m2, more, moments, moments + call.view.G);
      count += more;
    }
    write_moments(call, strip_box(call.view, call.partition, a, strip), mean, m2);
  }

  // Standardizing.

  // gain = 1 / sqrt(var + epsilon) of a strip whose moments are known; 0 where nothing counts.
  static void fill_gain(const Call& call, const Box& box, const R* var, R* gain, Strip<R>& strip) {
    for (int64_t group = 0; group < box.groups(); ++group) {
      const bool none = group_count(call, box.a, box.g0 + group) == 0;
      gain[group] = none ? R{0} : reciprocal_deviation(var[group], call.epsilon);
    }
    strip.gain = strip.rstd = gain;
  }

  static void apply_box(const Call& call, const Box& box) {
    Strip<R> strip = strip_of(call, box);
    R gain[kStrip];
    if (call.operation == Operation::normalize) {
      const int64_t at = box.a * call.view.G + box.g0;
      strip.center = static_cast<const R*>(call.out_center) + at;
      if (call.out_correction) strip.correction = static_cast<const R*>(call.out_correction) + at;
      fill_gain(call, box, static_cast<const R*>(call.out_var) + at, gain, strip);
    }
    Layout::apply(call, box, strip);
  }

  static void apply_bundle(const Call& call, int64_t task) {
    const Bundle bundle = bundle_of_task(call, task);
    for (int64_t a = bundle.a0; a < bundle.a1; ++a) {
      apply_box(call, strip_box(call.view, call.partition, a, bundle.strip));
    }
  }

  static void normalize_bundle(const Call& call, int64_t task) {
    const Bundle bundle = bundle_of_task(call, task);
    for (int64_t a = bundle.a0; a < bundle.a1; ++a) {
      measure_strip(call, a, bundle.strip);
      apply_box(call, strip_box(call.view, call.partition, a, bundle.strip));
    }
  }

  // The chunks measured last are read first: they may still be cached.
  static void apply_chunk(const Call& call, int64_t task) {
    apply_box(call, box_of_task(call, chunk_tasks(call) - 1 - task));
  }

  // The backward pass.

  static bool is_fused_operation(const Call& call) {
    return call.operation == Operation::backward_fused;
  }

  static void write_sums(const Call& call, const Box& box, const double* along,
                         const double* total) {
    const int64_t at = box.a * call.view.G + box.g0;
    const bool means = is_fused_operation(call);
    R* out_along = static_cast<R*>(means ? call.scratch_along : call.out_along);
    R* out_total = static_cast<R*>(means ? call.scratch_total : call.out_total);
    for (int64_t group = 0; group < box.groups(); ++group) {
      const double by = means ? 1 / at_least_one(group_count(call, box.a, box.g0 + group)) : 1;
      if (out_along != nullptr) out_along[at + group] = static_cast<R>(along[group] * by);
      if (out_total != nullptr) out_total[at + group] = static_cast<R>(total[group] * by);
    }
  }

  // The statistics of a strip; in the fused operation the gain follows from the variance.
  static Strip<R> statistics_of(const Call& call, const Box& box, R* gain) {
    Strip<R> strip = strip_of(call, box);
    if (is_fused_operation(call)) {
      fill_gain(call, box, row_of<R>(call.var, box.a, box.g0), gain, strip);
    }
    return strip;
  }

  static void use_means(const Call& call, const Box& box, Strip<R>& strip) {
    if (!is_fused_operation(call)) return;
    const int64_t at = box.a * call.view.G + box.g0;
    strip.along_mean = static_cast<const R*>(call.scratch_along) + at;
    if (!call.about_zero) strip.total_mean = static_cast<const R*>(call.scratch_total) + at;
  }

  static void backward_bundle(const Call& call, int64_t task) {
    const Bundle bundle = bundle_of_task(call, task);
    const Partition& p = call.partition;
    const bool sums_only = call.operation == Operation::sums;
    R gain[kBatch][kStrip];
    double along[kStrip], total[kStrip];
    Strip<R> strips[kBatch];
    Box box = strip_box(call.view, p, bundle.a0, bundle.strip);
    const BackwardSums parameters = parameter_sums(call, bundle.row, box);
    for (int64_t first = bundle.a0; first < bundle.a1; first += kBatch) {
      const int64_t batch = smaller(kBatch, bundle.a1 - first);
      for (int64_t i = 0; i < batch; ++i) {
        box.a = first + i;
        strips[i] = statistics_of(call, box, gain[i]);
        for (int64_t group = 0; group < box.groups(); ++group) along[group] = total[group] = 0;
        for (int64_t chunk = 0; chunk < chunks_of(p); ++chunk) {
          Layout::sums(call, chunk_box(call.view, p, box.a, bundle.strip, chunk), strips[i],
                       {along, total, parameters.scale, parameters.bias});
        }
        write_sums(call, box, along, total);
        if (sums_only) continue;
        use_means(call, box, strips[i]);
        Layout::backward(call, box, strips[i]);
      }
      box.a = first;
      Layout::parameters(call, box, batch, strips, parameters);
    }
  }

  // Sums of chunks: [A * chunks][2][G].
  static void sum_chunk(const Call& call, int64_t task) {
    const Partition& p = call.partition;
    const Box box = box_of_task(call, task);
    const int64_t chunk = chunk_of_task(call, task);
    R gain[kStrip];
    const Strip<R> strip = statistics_of(call, box, gain);
    BackwardSums sums = parameter_sums(call, p.shared_pieces ? chunk : chunk / p.pieces, box);
    sums.along = call.sums + chunk * 2 * call.view.G + box.g0;
    sums.total = sums.along + call.view.G;
    for (int64_t i = 0; i < box.groups(); ++i) sums.along[i] = sums.total[i] = 0;
    Layout::sums(call, box, strip, sums);
    Layout::parameters(call, box, 1, &strip, sums);
  }

  static void reduce_sums(const Call& call, int64_t task) {
    const int64_t strips = call.view.A * call.partition.strips;
    if (task >= strips) return reduce_parameters<R>(call, task - strips);
    const int64_t a = chunk_of_task(call, task), chunks = chunks_of(call.partition);
    const Box box = strip_box(call.view, call.partition, a, strip_of_task(call, task));
    double along[kStrip] = {}, total[kStrip] = {};
    for (int64_t chunk = a * chunks; chunk < (a + 1) * chunks; ++chunk) {
      const double* partial = call.sums + chunk * 2 * call.view.G + box.g0;
      for (int64_t i = 0; i < box.groups(); ++i) along[i] += partial[i];
      for (int64_t i = 0; i < box.groups(); ++i) total[i] += partial[call.view.G + i];
    }
    write_sums(call, box, along, total);
  }

  static void backward_box(const Call& call, const Box& box) {
    R gain[kStrip];
    Strip<R> strip = statistics_of(call, box, gain);
    use_means(call, box, strip);
    Layout::backward(call, box, strip);
  }

  static void backward_chunk(const Call& call, int64_t task) {
    backward_box(call, box_of_task(call, chunk_tasks(call) - 1 - task));
  }

  static void backward_only_bundle(const Call& call, int64_t task) {
    const Bundle bundle = bundle_of_task(call, task);
    for (int64_t a = bundle.a0; a < bundle.a1; ++a) {
      backward_box(call, strip_box(call.view, call.partition, a, bundle.strip));
    }
  }

  // The phases of each operation.

  using Run = void (*)(const Call&, int64_t);

  static void add(Plan& plan, int64_t tasks, Run run) {
    if (tasks > 0) plan.phases[plan.count++] = {tasks, run};
  }

  // A task that writes y or dx.
  template <Run kRun>
  static void writing(const Call& call, int64_t task) {
    kRun(call, task);
    if (call.streamed) end_stream();
  }

  static Plan plan(const Call& call) {
    const Partition& p = call.partition;
    const View& v = call.view;
    const int64_t bundles = bundle_tasks(call), chunks = chunk_tasks(call);
    const int64_t strips = v.A * p.strips, partial = p.fused ? 0 : v.A * chunks_of(p) * 2 * v.G;
    Plan plan = {};
    switch (call.operation) {
      case Operation::measure:
      case Operation::normalize: {
        const bool measured = call.operation == Operation::measure;
        if (p.fused) {
          add(plan, bundles, measured ? measure_bundle : writing<normalize_bundle>);
        } else {
          plan.moments = partial;
          add(plan, chunks, measure_chunk);
          add(plan, strips, merge_chunks);
          if (!measured) add(plan, chunks, writing<apply_chunk>);
        }
        break;
      }
      case Operation::apply:
        add(plan, p.fused ? bundles : chunks,
            p.fused ? writing<apply_bundle> : writing<apply_chunk>);
        break;
      case Operation::backward:
        add(plan, p.fused ? bundles : chunks,
            p.fused ? writing<backward_only_bundle> : writing<backward_chunk>);
        break;
      case Operation::sums:
      case Operation::backward_fused: {
        plan.parameters =
            wants_parameters(call) ? parameter_rows(call) * 2 * parameter_count(v) : 0;
        plan.means = is_fused_operation(call) ? v.A * v.G : 0;
        if (p.fused) {
          add(plan, bundles, writing<backward_bundle>);
          add(plan, parameter_tasks(call), reduce_parameters<R>);
        } else {
          plan.sums = partial;
          add(plan, chunks, sum_chunk);
          add(plan, strips + parameter_tasks(call), reduce_sums);
          if (is_fused_operation(call)) add(plan, chunks, writing<backward_chunk>);
        }
        break;
      }
    }
    return plan;
  }
};

// Whether every row that is put begins aligned: some streamed and some not are the slowest.
template <class T>
inline bool rows_are_aligned(const Call& call) {
  const Partition& p = call.partition;
  const bool wide = p.layout == Layout::columns && call.mask.rows == 1;
  const int64_t copies = wide ? p.copies : 1;
  const int64_t row = copies * call.view.G * p.length, strip = p.strip * p.length;
  constexpr int64_t vector = kWidth<Real<T>>;
  return row % vector == 0 && (p.strips == 1 || strip % vector == 0);
}

template <class T>
inline Plan plan_of_dtype(Call& call) {
  const int64_t prepared = prepared_size(call, call.scale) + bias_size(call);
  Plan plan = {};
  switch (call.partition.layout) {
    case Layout::columns:
      plan = Operations<T, Columns<T>>::plan(call);
      break;
    case Layout::crossed:
      plan = Operations<T, Crossed<T>>::plan(call);
      break;
    case Layout::elementwise:
      plan = Operations<T, Elementwise<T>>::plan(call);
      break;
    case Layout::runs:
      plan = Operations<T, Runs<T>>::plan(call);
      break;
  }
  plan.prepared = prepared;
  plan.counts = counts_size(call);
  plan.prepare = prepare<Real<T>>;
  const bool backward = call.g != nullptr;
  const View& v = call.view;
  const int64_t bytes = v.A * v.R * v.G * v.S * v.T * static_cast<int64_t>(sizeof(T));
  plan.bytes = bytes * (backward ? 3 : 2);
  call.streamed = bytes >= kStreamed && rows_are_aligned<T>(call);
  return plan;
}

}  // namespace

Plan plan(Call& call) {
  call.partition = partition_of(call.view, call.share, call.mask);
  switch (call.dtype) {
    case Dtype::float32:
      return plan_of_dtype<float>(call);
    case Dtype::float64:
      return plan_of_dtype<double>(call);
    case Dtype::bfloat16:
      return plan_of_dtype<bfloat16>(call);
    case Dtype::float16:
      return plan_of_dtype<float16>(call);
  }
  return {};
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm
