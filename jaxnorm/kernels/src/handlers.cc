// The handlers that XLA calls.
//
// Each takes the view of x as the attributes A, R, G, S, T and by_row. Of an operand or a result
// only the dtype and the number of values are looked at; what is optional has none where it is not
// given.
//
//   D          float32, bfloat16, float16 or float64: x, g, y, dx
//   F          float32, float64 where D is float64: statistics and parameters
//   rows       F[A, G], or F[1, G], the same for every a
//   parameters F[P, G, S], where P divides A: A / P consecutive a have the same; by row F[P, R],
//              where S = T = 1, and without a shift
//
//   jaxnorm_measure         x; about_zero -> center, correction?, var
//   jaxnorm_apply           x, center, correction?, gain, shift?, scale?, bias? -> y
//   jaxnorm_normalize       x, scale?, bias?, epsilon; about_zero -> y, center, correction?, var
//   jaxnorm_sums            x, g, center, correction?, gain, shift?, scale?
//                             -> along?, total?, dscale?, dbias?
//   jaxnorm_backward        x, g, center, correction?, gain, rstd?, along_mean?, total_mean?,
//   scale?
//                             -> dx
//   jaxnorm_backward_fused  x, g, center, correction?, var, scale?, epsilon; about_zero
//                             -> dx, dscale?, dbias?
//
//   mean   = center + correction, which is more precise than F
//   y      = ((x - mean) * gain + shift) * scale + bias, where gain = 1 / sqrt(var + epsilon)
//   along  = sum(scale * g * (x - mean)) and total = sum(scale * g) of each (a, g)
//   dscale = sum(g * ((x - mean) * gain + shift)) and dbias = sum(g) of each parameter
//   dx     = gain * (scale * g - total_mean - (x - mean) * rstd^2 * along_mean)

#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "job.h"
#include "kernels.h"
#include "operands.h"
#include "xla/ffi/api/ffi.h"

namespace jaxnorm {
namespace {

using Planner = Plan (*)(Call&);

struct InstructionSet {
  const char* name;
  Planner plan;
};

InstructionSet best_instruction_set() {
#ifdef JAXNORM_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return {"AVX-512", avx512::plan};
  if (avx2) return {"AVX2", avx2::plan};
#endif
  return {"baseline", baseline::plan};
}

const InstructionSet& instruction_set() {
  static const InstructionSet best = best_instruction_set();
  return best;
}

void fill_zero(const ffi::AnyBuffer& buffer) {
  std::memset(buffer.untyped_data(), 0, buffer.size_bytes());
}

ffi::Future failed(std::string message) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(ffi::Error::InvalidArgument(std::move(message)));
  return future;
}

ffi::Future ready() {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetAvailable();
  return future;
}

// Reads a call with `describe`, and runs it. A view without values has results of 0.
template <class Describe>
ffi::Future run(Operation operation, const View& view, const ffi::ThreadPool& pool,
                const ffi::AnyBuffer& x, std::initializer_list<ffi::Result<ffi::AnyBuffer>> results,
                Describe describe) try {
  const Operands operands(view, x);
  Call call = {};
  call.operation = operation;
  call.dtype = operands.dtype();
  call.view = view;
  call.share = view.A;
  call.x = operands.values("x", x);
  if (operands.empty()) {
    for (ffi::Result<ffi::AnyBuffer> result : results) fill_zero(*result);
    return ready();
  }
  describe(operands, call);
  if (view.by_row && (view.S != 1 || view.T != 1 || call.shift.data != nullptr)) {
    throw Invalid("by row there are neither S and T nor a shift");
  }
  const Plan plan = instruction_set().plan(call);
  return std::make_shared<Job>(call, plan)->run(pool);
} catch (const Invalid& invalid) {
  return failed(std::string("jaxnorm: ") + invalid.what());
} catch (const std::exception& error) {
  return failed(std::string("jaxnorm: ") + error.what());
}

using Buffer = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Future measure(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S, int64_t T,
                    bool by_row, bool about_zero, Buffer x, Out center, Out correction, Out var) {
  return run(Operation::measure, {A, R, G, S, T, by_row}, pool, x, {center, correction, var},
             [&](const Operands& operands, Call& call) {
               call.about_zero = about_zero;
               call.out_center = operands.result("center", *center);
               call.out_correction = operands.result_or_none("correction", *correction);
               call.out_var = operands.result("var", *var);
             });
}

ffi::Future apply(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S, int64_t T,
                  bool by_row, Buffer x, Buffer center, Buffer correction, Buffer gain,
                  Buffer shift, Buffer scale, Buffer bias, Out y) {
  return run(Operation::apply, {A, R, G, S, T, by_row}, pool, x, {y},
             [&](const Operands& operands, Call& call) {
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.shift = operands.statistics_or_none("shift", shift);
               call.scale = operands.parameters_or_none("scale", scale);
               call.bias = operands.parameters_or_none("bias", bias);
               call.y = operands.values("y", *y);
             });
}

ffi::Future normalize(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S, int64_t T,
                      bool by_row, bool about_zero, Buffer x, Buffer scale, Buffer bias,
                      Buffer epsilon, Out y, Out center, Out correction, Out var) {
  return run(Operation::normalize, {A, R, G, S, T, by_row}, pool, x, {y, center, correction, var},
             [&](const Operands& operands, Call& call) {
               call.about_zero = about_zero;
               call.scale = operands.parameters_or_none("scale", scale);
               call.bias = operands.parameters_or_none("bias", bias);
               call.epsilon = operands.scalar("epsilon", epsilon);
               call.y = operands.values("y", *y);
               call.out_center = operands.result("center", *center);
               call.out_correction = operands.result_or_none("correction", *correction);
               call.out_var = operands.result("var", *var);
             });
}

// The derivatives of scale and bias, with the same rows.
void describe_parameters(const Operands& operands, Call& call, const Buffer& dscale,
                         const Buffer& dbias) {
  const Rows scale = operands.parameters_or_none("dscale", dscale);
  const Rows bias = operands.parameters_or_none("dbias", dbias);
  if (scale.data && bias.data && scale.share != bias.share) {
    throw Invalid("dscale and dbias have different numbers of rows");
  }
  call.out_scale = const_cast<void*>(scale.data);
  call.out_bias = const_cast<void*>(bias.data);
  if (scale.data || bias.data) call.share = scale.data ? scale.share : bias.share;
}

ffi::Future sums(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S, int64_t T,
                 bool by_row, Buffer x, Buffer g, Buffer center, Buffer correction, Buffer gain,
                 Buffer shift, Buffer scale, Out along, Out total, Out dscale, Out dbias) {
  return run(Operation::sums, {A, R, G, S, T, by_row}, pool, x, {along, total, dscale, dbias},
             [&](const Operands& operands, Call& call) {
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.shift = operands.statistics_or_none("shift", shift);
               call.scale = operands.parameters_or_none("scale", scale);
               call.out_along = operands.result_or_none("along", *along);
               call.out_total = operands.result_or_none("total", *total);
               describe_parameters(operands, call, *dscale, *dbias);
             });
}

ffi::Future backward(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S, int64_t T,
                     bool by_row, Buffer x, Buffer g, Buffer center, Buffer correction, Buffer gain,
                     Buffer rstd, Buffer along_mean, Buffer total_mean, Buffer scale, Out dx) {
  return run(Operation::backward, {A, R, G, S, T, by_row}, pool, x, {dx},
             [&](const Operands& operands, Call& call) {
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.rstd = operands.statistics_or_none("rstd", rstd);
               call.along_mean = operands.statistics_or_none("along_mean", along_mean);
               call.total_mean = operands.statistics_or_none("total_mean", total_mean);
               call.scale = operands.parameters_or_none("scale", scale);
               call.y = operands.values("dx", *dx);
             });
}

ffi::Future backward_fused(ffi::ThreadPool pool, int64_t A, int64_t R, int64_t G, int64_t S,
                           int64_t T, bool by_row, bool about_zero, Buffer x, Buffer g,
                           Buffer center, Buffer correction, Buffer var, Buffer scale,
                           Buffer epsilon, Out dx, Out dscale, Out dbias) {
  return run(Operation::backward_fused, {A, R, G, S, T, by_row}, pool, x, {dx, dscale, dbias},
             [&](const Operands& operands, Call& call) {
               call.about_zero = about_zero;
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.var = operands.statistics("var", var);
               call.scale = operands.parameters_or_none("scale", scale);
               call.epsilon = operands.scalar("epsilon", epsilon);
               call.y = operands.values("dx", *dx);
               describe_parameters(operands, call, *dscale, *dbias);
             });
}

auto of_view() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("A")
      .Attr<int64_t>("R")
      .Attr<int64_t>("G")
      .Attr<int64_t>("S")
      .Attr<int64_t>("T")
      .Attr<bool>("by_row");
}

}  // namespace
}  // namespace jaxnorm

using jaxnorm::Buffer;

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_measure, jaxnorm::measure,
                              jaxnorm::of_view()
                                  .Attr<bool>("about_zero")
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_apply, jaxnorm::apply,
                              jaxnorm::of_view()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_normalize, jaxnorm::normalize,
                              jaxnorm::of_view()
                                  .Attr<bool>("about_zero")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_sums, jaxnorm::sums,
                              jaxnorm::of_view()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_backward, jaxnorm::backward,
                              jaxnorm::of_view()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_backward_fused, jaxnorm::backward_fused,
                              jaxnorm::of_view()
                                  .Attr<bool>("about_zero")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

// The instruction set that the kernels use here.
extern "C" const char* jaxnorm_instruction_set() { return jaxnorm::instruction_set().name; }

#pragma GCC visibility pop
