// The operators of the hardest losses: what both devices check of their tensors. Must not know: how they are found.
#pragma once

#include "hardest.h"
#include "torch/problem.h"

namespace focal::glue {

inline void check_losses(const Tensor& losses) {
  const ScalarType dtype = losses.scalar_type();
  require((dtype == ScalarType::Float || dtype == ScalarType::Double) && losses.is_contiguous(),
          "losses must be contiguous float32 or float64");
}

inline HardestRule hardest_rule(const Tensor& losses, const Tensor& counted, double keep_ratio, double threshold) {
  check_losses(losses);
  const ScalarType dtype = counted.scalar_type();
  require(counted.numel() == 1 && (dtype == ScalarType::Long || dtype == ScalarType::Double),
          "counted must be one int64 or float64");
  require(keep_ratio >= 0 && keep_ratio <= 1, "keep_ratio must be in (0, 1], or 0 for none");
  require(keep_ratio > 0 || threshold >= 0, "keep_ratio or threshold must be given");
  return {keep_ratio, threshold};
}

// upstream: of the mean of those losses that are kept.
inline void check_kept(const Tensor& losses, const Tensor& upstream, const Tensor& kept) {
  check_losses(losses);
  require(upstream.numel() == 1 && upstream.scalar_type() == losses.scalar_type(),
          "upstream must be one number of the losses' dtype");
  require(kept.numel() == kKeptNumbers && kept.scalar_type() == ScalarType::Long && kept.is_contiguous(),
          "kept must be what the forward gave");
}

inline void check_hardest_backward(const Tensor& upstream, const Tensor& losses, const Tensor& kept,
                                   const Tensor& grad_losses) {
  check_kept(losses, upstream, kept);
  require(grad_losses.numel() == losses.numel() && grad_losses.scalar_type() == losses.scalar_type() &&
              grad_losses.is_contiguous(),
          "grad_losses must be like the losses");
}

inline Tensor empty_kept(const Tensor& losses) {
  return torch::stable::new_empty(losses, {kKeptNumbers}, ScalarType::Long);
}

}  // namespace focal::glue
