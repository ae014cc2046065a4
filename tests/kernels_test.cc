// Runs every kernel of every instruction set that this processor has on buffers that end where
// their values end and begin at odd addresses, and compares with sums in double. `make sanitize`
// builds it with AddressSanitizer and UndefinedBehaviorSanitizer.

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "call.h"

#define JAXNORM_ISA test
#include "dtype.h"

using namespace jaxnorm;

namespace {

int failures = 0;

// Values that start `shift` of them after an aligned address and end where the allocation ends.
template <class T>
class Values {
 public:
  explicit Values(int64_t n, int64_t shift = 1)
      : n_(n), shift_(shift), all_(new T[static_cast<size_t>(n + shift)]()) {}
  T* data() { return all_.get() + shift_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }

 private:
  int64_t n_, shift_;
  std::unique_ptr<T[]> all_;
};

template <class T>
constexpr Dtype kDtype = Dtype::float32;
template <>
constexpr Dtype kDtype<double> = Dtype::float64;
template <>
constexpr Dtype kDtype<bfloat16> = Dtype::bfloat16;
template <>
constexpr Dtype kDtype<float16> = Dtype::float16;

// What the kernels should give, from the same inputs.
struct Expected {
  std::vector<double> mean, var, y, dx, dscale, dbias;
};

template <class T>
struct Case {
  using F = Real<T>;
  View view;
  int64_t P;
  bool about_zero;
  int64_t slices = view.A * view.G, width = view.by_row ? view.R : view.G * view.S;
  int64_t parameters = P * width;
  int64_t n = view.A * view.R * view.G * view.S * view.T;
  double count = static_cast<double>(view.R * view.S * view.T);
  Values<T> x{n}, g{n}, y{n};
  Values<F> scale{parameters}, bias{parameters}, center{slices}, correction{slices};
  Values<F> mean{slices}, var{slices}, rstd{slices};
  Values<F> along{slices}, total{slices}, dscale{parameters}, dbias{parameters};

  Case(View v, int64_t p, bool zero) : view(v), P(p), about_zero(zero) {
    std::mt19937 engine(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) narrow(static_cast<F>(3 + 2 * normal(engine)), x[i]);
    for (int64_t i = 0; i < n; ++i) narrow(static_cast<F>(normal(engine)), g[i]);
    for (int64_t i = 0; i < parameters; ++i) scale[i] = normal(engine), bias[i] = normal(engine);
  }

  // Calls each(value, row of statistics, parameter) in the order of memory.
  template <class Each>
  void for_each(Each each) const {
    int64_t i = 0;
    for (int64_t a = 0; a < view.A; ++a)
      for (int64_t r = 0; r < view.R; ++r)
        for (int64_t k = 0; k < view.G; ++k)
          for (int64_t s = 0; s < view.S; ++s)
            for (int64_t t = 0; t < view.T; ++t)
              each(i++, a * view.G + k,
                   a / (view.A / P) * width + (view.by_row ? r : k * view.S + s));
  }

  Expected expected() {
    std::vector<double> m(slices), v(slices), al(slices), to(slices), ds(parameters),
        db(parameters);
    std::vector<double> out(n), dx(n);
    const double epsilon = 1e-6;
    if (!about_zero)
      for_each([&](int64_t i, int64_t k, int64_t) { m[k] += widened(x[i]) / count; });
    for_each([&](int64_t i, int64_t k, int64_t) {
      const double d = widened(x[i]) - m[k];
      v[k] += d * d / count;
    });
    for_each([&](int64_t i, int64_t k, int64_t p) {
      const double d = widened(x[i]) - m[k], r = 1 / std::sqrt(v[k] + epsilon);
      out[i] = d * r * scale[p] + bias[p];
      al[k] += scale[p] * widened(g[i]) * d / count;
      if (!about_zero) to[k] += scale[p] * widened(g[i]) / count;
      ds[p] += widened(g[i]) * d * r;
      db[p] += widened(g[i]);
    });
    for_each([&](int64_t i, int64_t k, int64_t p) {
      const double d = widened(x[i]) - m[k], r = 1 / std::sqrt(v[k] + epsilon);
      dx[i] = r * (scale[p] * widened(g[i]) - to[k] - d * r * r * al[k]);
    });
    return {m, v, out, dx, ds, db};
  }

  // A mask along the axes that it may vary along, in which every value counts.
  std::vector<uint8_t> bytes;
  Mask mask = {};

  void count_all() {
    const bool by_g = view.by_row;
    mask = {nullptr, 1, by_g ? 1 : view.R, by_g, !by_g && view.T > 1};
    int64_t size = view.A * mask.rows * (by_g ? view.G : 1);
    if (mask.by_t) size *= view.T;
    bytes.assign(static_cast<size_t>(size), 1);
    bytes.shrink_to_fit();
    mask.data = bytes.data();
  }

  Call call(Operation operation) {
    Call c = {};
    c.mask = mask;
    c.operation = operation;
    c.dtype = kDtype<T>;
    c.view = view;
    c.share = view.A;
    c.about_zero = about_zero;
    c.epsilon = static_cast<double>(static_cast<F>(1e-6));
    c.x = x.data();
    for (Rows* rows : {&c.center, &c.correction, &c.var, &c.gain, &c.shift, &c.rstd, &c.along_mean,
                       &c.total_mean})
      *rows = {nullptr, 0, 1};
    c.scale = {scale.data(), width, view.A / P};
    c.bias = {bias.data(), width, view.A / P};
    c.y = y.data();
    return c;
  }

  Rows rows(Values<F>& values) { return {values.data(), view.G, 1}; }
};

// All phases, with the tasks of each forwards or backwards.
void run(Plan (*planner)(Call&), Call call, bool backwards) {
  const Plan plan = planner(call);
  Values<double> moments(plan.moments, 0), sums(plan.sums, 0), parameters(plan.parameters, 0);
  Values<double> counts(plan.counts, 0), prepared(plan.prepared, 0), along(plan.means, 0),
      total(plan.means, 0);
  call.moments = moments.data();
  call.sums = sums.data();
  call.parameters = parameters.data();
  call.counts = counts.data();
  call.prepared = prepared.data();
  call.scratch_along = along.data();
  call.scratch_total = total.data();
  plan.prepare(call);
  for (int i = 0; i < plan.count; ++i) {
    const int64_t tasks = plan.phases[i].tasks;
    for (int64_t task = 0; task < tasks; ++task) {
      plan.phases[i].run(call, backwards ? tasks - 1 - task : task);
    }
  }
}

template <class T>
void check(const std::string& what, Values<T>& actual, const std::vector<double>& expected,
           double tolerance) {
  double largest = 1, error = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(widened(actual[i]) - expected[i]);
    error = difference <= error ? error : difference;  // NaN stays
  }
  if (error <= tolerance * largest) return;
  std::printf("%s: off by %.2g of %.2g\n", what.c_str(), error, largest);
  ++failures;
}

template <class T>
void check_case(const char* set, Plan (*planner)(Call&), View v, int64_t P, bool about_zero,
                bool masked = false) {
  Case<T> c(v, P, about_zero);
  if (masked) c.count_all();
  const Expected expected = c.expected();
  const double exact = sizeof(T) == 8 ? 1e-12 : 1e-5;
  const double rounded = sizeof(T) == 2 ? (kDtype<T> == Dtype::float16 ? 2e-3 : 1e-2) : exact;
  const auto name = [&](const char* of) {
    std::string text = std::string(set) + " " + std::to_string(static_cast<int>(kDtype<T>)) + " ";
    for (const int64_t extent : {v.A, v.R, v.G, v.S, v.T, P}) text += std::to_string(extent) + " ";
    if (v.by_row) text += "by row ";
    if (masked) text += "masked ";
    return text + of;
  };

  std::vector<T> first;
  for (const bool backwards : {false, true}) {
    Call normalize = c.call(Operation::normalize);
    normalize.out_center = c.center.data();
    normalize.out_correction = c.correction.data();
    normalize.out_var = c.var.data();
    run(planner, normalize, backwards);
    check(name("y"), c.y, expected.y, rounded);
    check(name("center"), c.center, expected.mean, exact);
    // A center that is off by a part of the deviation is as good with its correction.
    for (int64_t i = 0; i < c.slices; ++i) {
      c.mean[i] = c.center[i] + c.correction[i];
      c.correction[i] = about_zero ? 0 : std::sqrt(c.var[i]) / 4;
      c.center[i] = c.mean[i] - c.correction[i];
    }
    check(name("mean"), c.mean, expected.mean, exact);
    check(name("var"), c.var, expected.var, exact);
    for (int64_t i = 0; i < c.slices; ++i) c.rstd[i] = 1 / std::sqrt(c.var[i] + 1e-6);

    Call measure = c.call(Operation::measure);
    measure.out_center = c.mean.data();
    measure.out_var = c.var.data();
    run(planner, measure, backwards);
    check(name("measured var"), c.var, expected.var, exact);

    Call apply = c.call(Operation::apply);
    apply.center = c.rows(c.center);
    apply.correction = c.rows(c.correction);
    apply.gain = c.rows(c.rstd);
    run(planner, apply, backwards);
    check(name("applied y"), c.y, expected.y, rounded);

    Call fused = c.call(Operation::backward_fused);
    fused.share = v.A / P;
    fused.g = c.g.data();
    fused.center = c.rows(c.center);
    fused.correction = c.rows(c.correction);
    fused.var = c.rows(c.var);
    fused.out_scale = c.dscale.data();
    fused.out_bias = c.dbias.data();
    run(planner, fused, backwards);
    check(name("dx"), c.y, expected.dx, rounded);
    check(name("dscale"), c.dscale, expected.dscale, exact * std::sqrt(c.n));
    check(name("dbias"), c.dbias, expected.dbias, exact);
    std::vector<T> dx(c.y.data(), c.y.data() + c.n);
    if (backwards && std::memcmp(dx.data(), first.data(), dx.size() * sizeof(T)) != 0) {
      std::printf("%s depends on the order of the tasks\n", name("dx").c_str());
      ++failures;
    }
    first = dx;

    Call sums = c.call(Operation::sums);
    sums.share = v.A / P;
    sums.g = c.g.data();
    sums.center = c.rows(c.center);
    sums.correction = c.rows(c.correction);
    sums.gain = c.rows(c.rstd);
    sums.out_along = c.along.data();
    sums.out_total = c.total.data();
    sums.out_scale = c.dscale.data();
    sums.out_bias = c.dbias.data();
    run(planner, sums, backwards);
    check(name("dscale of sums"), c.dscale, expected.dscale, exact * std::sqrt(c.n));
    for (int64_t i = 0; i < c.slices; ++i) c.along[i] /= c.count, c.total[i] /= c.count;

    Call backward = c.call(Operation::backward);
    backward.g = c.g.data();
    backward.center = c.rows(c.center);
    backward.correction = c.rows(c.correction);
    backward.gain = backward.rstd = c.rows(c.rstd);
    backward.along_mean = c.rows(c.along);
    if (!about_zero) backward.total_mean = c.rows(c.total);
    run(planner, backward, backwards);
    check(name("dx in two"), c.y, expected.dx, rounded);
  }
}

void check_set(const char* set, Plan (*planner)(Call&)) {
  const View views[] = {
      {1, 1, 1, 1, 1},           {1, 300, 64, 1, 1},        {1, 1000, 3, 1, 1},
      {1, 77, 16, 1, 1},         {1, 4099, 100, 1, 1},      {1, 40, 2000, 1, 1},
      {1, 2049, 32, 1, 1},       {16, 50, 32, 2, 1},        {5, 7, 7, 3, 2},
      {300, 1, 1, 64, 1},        {33, 1, 1, 1000, 1},       {7, 1, 4, 3, 1},
      {3, 1, 1, 70000, 1},       {2, 1, 1, 1, 200000},      {2, 1, 2, 5, 70001},
      {3, 1, 8, 4, 49},          {2, 32, 16, 1, 49},        {1, 12, 5, 1, 500},
      {1, 9, 3, 300, 1},         {20, 40, 1, 300, 1},       {2, 3, 3, 200, 5},
      {2, 1, 1, 70000, 3},       {64, 4, 6, 1, 1},          {10, 3000, 64, 1, 1},
      {2, 1, 1030, 1, 33},       {6, 96, 49, 1, 1, true},   {20, 7, 3, 1, 1, true},
      {3, 1, 5, 1, 1, true},     {2, 30, 2100, 1, 1, true}, {2, 1100, 300, 1, 1, true},
      {1, 2049, 32, 1, 1, true}, {9, 64, 208, 1, 1, true},
  };
  for (const View& view : views) {
    for (const bool about_zero : {false, true}) {
      check_case<float>(set, planner, view, 1, about_zero);
      check_case<float>(set, planner, view, 1, about_zero, true);
      check_case<double>(set, planner, view, view.A, about_zero);
      check_case<double>(set, planner, view, view.A, about_zero, true);
      check_case<bfloat16>(set, planner, view, 1, about_zero);
      check_case<bfloat16>(set, planner, view, 1, about_zero, true);
      check_case<float16>(set, planner, view, view.A % 2 == 0 ? view.A / 2 : view.A, about_zero);
    }
  }
}

}  // namespace

int main() {
  check_set("baseline", baseline::plan);
#ifdef JAXNORM_X86
  if (__builtin_cpu_supports("avx2")) check_set("AVX2", avx2::plan);
  if (__builtin_cpu_supports("avx512vl")) check_set("AVX-512", avx512::plan);
#endif
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
