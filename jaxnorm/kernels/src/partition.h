// How a view is cut: into strips of groups (whose statistics are independent of each other), and
// each strip of an a into chunks of r and, where a group is long, pieces of it.
//
// - columns: short groups over many r (channels last), with an accumulator for each channel
// - crossed: the same with a parameter for each r (layer normalization of channels first), or with
//   a mask that varies along the groups
// - elementwise: long groups with a parameter for each value (layer normalization)
// - runs: long groups with a parameter for each run of T values (channels first), and all that have
//   a mask that varies along T
#ifndef JAXNORM_PARTITION_H_
#define JAXNORM_PARTITION_H_

#include "call.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kLongGroup = 256;  // values: a longer group is summed along, not down
constexpr int64_t kShortRun = 32;    // values: a shorter run has a copy of its parameter for each
constexpr int64_t kWide = 256;       // values: a shorter row is taken together with the next
constexpr int64_t kAligned = 32;     // columns of a strip come in so many, if there are several
constexpr int64_t kStrip = 1024;     // values at most in a strip of columns, groups in any strip
constexpr int64_t kChunkRows = 256;  // wide rows in a chunk
constexpr int64_t kChunk = 65536;    // values in a chunk of long groups
constexpr int64_t kCached = 512 * 1024;  // values that are still cached when they are read again
constexpr int64_t kTasks = 128;          // fused tasks, where each has at least kTaskRows rows
constexpr int64_t kTaskRows = 32;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How many consecutive rows of `width` values make one that fills vectors.
static inline int64_t copies_of(int64_t width) {
  if (width >= kWide) return 1;
  const int64_t copies = ceil_div(kWide, width);
  if (width >= 32) return copies;
  int64_t multiple = 16;
  for (int64_t rest = width; rest % 2 == 0 && multiple > 1; rest /= 2) multiple /= 2;
  return ceil_div(copies, multiple) * multiple;
}

// Values of a scale or a bias for one a.
static inline int64_t parameter_count(const View& v) { return v.by_row ? v.R : v.G * v.S; }

static inline Layout layout_of(const View& v, const Mask& mask) {
  if (v.by_row || mask.by_g) return Layout::crossed;
  if (mask.by_t) return Layout::runs;
  if (v.R > 1 && v.S * v.T <= kLongGroup) return Layout::columns;
  return v.T < kShortRun ? Layout::elementwise : Layout::runs;
}

static inline Partition partition_of(const View& v, int64_t share, const Mask& mask) {
  Partition p = {};
  p.length = v.S * v.T;
  p.copies = p.pieces = 1;
  p.piece = p.length;
  p.share = share;
  p.layout = layout_of(v, mask);
  int64_t strip;
  if (p.layout == Layout::columns || p.layout == Layout::crossed) {
    p.copies = smaller(copies_of(v.G * p.length), v.R);
    strip = v.G * p.length < kWide ? v.G : larger(1, kStrip / p.length);
    p.rows = kChunkRows * p.copies;
  } else {
    strip = smaller(kStrip, larger(1, kChunk / 4 / p.length));
    if (p.length > kChunk) {
      p.shared_pieces = v.T > kChunk;
      p.piece = p.shared_pieces ? kChunk / 2 : larger(1, kChunk / 2 / v.T) * v.T;
      p.pieces = ceil_div(p.length, p.piece);
    }
    p.rows = larger(1, kChunk / (smaller(strip, v.G) * p.length));
  }
  p.strips = ceil_div(v.G, strip);
  p.strip = ceil_div(v.G, p.strips);
  if (p.strips > 1 && p.length == 1) p.strip = ceil_div(p.strip, kAligned) * kAligned;
  p.strips = ceil_div(v.G, p.strip);
  p.row_chunks = ceil_div(v.R - p.copies + 1, p.rows);  // each has a whole wide row

  const int64_t values = v.R * p.strip * p.length;
  p.fused = p.row_chunks * p.pieces == 1 || (values <= kCached && v.A * p.strips >= 8);
  const int64_t tasks = ceil_div(kTasks, p.strips);
  p.bundle = larger(ceil_div(share, tasks), ceil_div(kTaskRows, v.R));
  p.bundle = smaller(p.bundle, share);
  p.bundles = ceil_div(share, p.bundle);
  return p;
}

// The part of the view that a kernel works on: [r0, r1) x [g0, g1) x [l0, l1) of a.
struct Box {
  int64_t a, r0, r1, g0, g1, l0, l1;
  int64_t groups() const { return g1 - g0; }
  int64_t length() const { return l1 - l0; }
  double count() const { return static_cast<double>((r1 - r0) * (l1 - l0)); }  // of a group
};

static inline Box strip_box(const View& v, const Partition& p, int64_t a, int64_t strip) {
  return {a, 0, v.R, strip * p.strip, smaller(v.G, (strip + 1) * p.strip), 0, p.length};
}

static inline int64_t chunks_of(const Partition& p) { return p.row_chunks * p.pieces; }

static inline Box chunk_box(const View& v, const Partition& p, int64_t a, int64_t strip,
                            int64_t chunk) {
  Box box = strip_box(v, p, a, strip);
  const int64_t row = chunk / p.pieces, piece = chunk % p.pieces;
  box.r0 = row * p.rows;
  box.r1 = row + 1 == p.row_chunks ? v.R : box.r0 + p.rows;
  box.l0 = piece * p.piece;
  box.l1 = smaller(p.length, box.l0 + p.piece);
  return box;
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_PARTITION_H_
