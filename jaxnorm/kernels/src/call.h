// What a handler asks of the kernels: plain data, shared by the code of every instruction set.
// Nothing here may have code of its own: the linker would keep one copy of it for all of them.
#ifndef JAXNORM_CALL_H_
#define JAXNORM_CALL_H_

#include <cstdint>

namespace jaxnorm {

enum class Dtype { float32, float64, bfloat16, float16 };

enum class Operation { measure, apply, normalize, sums, backward, backward_fused };

// The input as x[A, R, G, S, T], row-major and contiguous. The moments of each (a, g) are taken
// over (R, S, T); scale and bias have one value for each (g, s), or for each r, where S = T = 1.
struct View {
  int64_t A, R, G, S, T;
  bool by_row = false;
};

// Rows of statistics or parameters, in the statistics' dtype: `share` consecutive a have one row of
// `width` values. No data: the operand was not given.
struct Rows {
  const void* data;
  int64_t width, share;
};

// Which values count: a byte, not 0 where they do, for each of `rows` equal runs of consecutive r,
// and for each value along the axes of the view that it varies along; `share` consecutive a have
// the same. No data: every value counts.
struct Mask {
  const uint8_t* data;
  int64_t share, rows;
  bool by_g, by_t;
};

// How the work is cut into tasks: by the shape alone, never by the number of threads, so that the
// order of every sum is fixed. See partition.h.
enum class Layout { columns, crossed, elementwise, runs };

struct Partition {
  Layout layout;
  int64_t length;            // contiguous values of a group: S * T
  int64_t copies;            // columns: consecutive r that are taken for one wide row
  int64_t strip, strips;     // groups in a strip
  int64_t rows, row_chunks;  // r in a chunk
  int64_t piece, pieces;     // values of a group in a chunk
  bool shared_pieces;        // several pieces sum into one parameter
  int64_t share;             // consecutive a that sum into one row of parameters
  int64_t bundle, bundles;   // a in a fused task; tasks of a share
  bool fused;                // a task does whole strips of whole a, else a chunk of one
};

struct Call {
  Operation operation;
  Dtype dtype;
  View view;
  int64_t share;  // consecutive a that sum into one row of parameters
  Mask mask;
  Partition partition;
  bool about_zero;
  double epsilon;

  const void *x, *g;
  Rows center, correction, var, gain, shift, rstd, along_mean, total_mean, scale, bias;

  void* y;        // or dx
  bool streamed;  // written around the cache
  void *out_center, *out_correction, *out_var, *out_count, *out_along, *out_total, *out_scale,
      *out_bias;  // null: not wanted

  double *moments, *sums, *parameters;  // partial results of the tasks, in scratch memory
  double* counts;                       // with a mask: how many values count, see mask.h
  void* prepared;                       // scratch memory of `prepare`
  void *scratch_along, *scratch_total;  // the means of a backward pass in several phases
};

// A phase starts when every task of the one before it has ended.
struct Phase {
  int64_t tasks;
  void (*run)(const Call&, int64_t task);
};

struct Plan {
  Phase phases[3];
  int count;
  int64_t bytes;  // read and written, roughly: whether threads are worth their start
  int64_t moments, sums, parameters, counts, prepared, means;  // doubles of scratch memory
  void (*prepare)(Call&);
};

}  // namespace jaxnorm

#endif  // JAXNORM_CALL_H_
