//! The router and linear layers over ranges of rows: every kind of router, every storage, experts without rows.

use tune_kernels::KernelBackend;
use tune_kernels::check::linear::STORAGES;
use tune_kernels::check::mixture::{ROUTERS, check_grouped_linear, check_router};
use tune_kernels::linear::reference::Sizes;

use crate::support::{Site, assert_within, everywhere};

#[test]
fn router_agrees_with_the_oracle() {
    everywhere!(check_routers);
}

fn check_routers<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for router in ROUTERS {
            for (tokens, experts) in [(1, 4), (7, 9), (300, 60), (65, 128)] {
                let device = B::Device::default();
                let found = check_router(Site::on::<B>(&device, dtype), tokens, experts, router);
                assert_within(&format!("router in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

#[test]
fn grouped_linear_agrees_with_the_oracle() {
    everywhere!(check_groups);
}

fn check_groups<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for storage in STORAGES {
            for (counts, input, out, rank) in [
                (&[1][..], 64, 1, 0),
                (&[0, 3, 0, 1, 20, 0], 77, 40, 3),
                (&[33, 0, 2, 65], 128, 96, 8),
                // More rows than the CPU computes side by side.
                (&[700, 0, 500, 1, 600], 16, 8, 2),
            ] {
                let device = B::Device::default();
                let sizes = Sizes { tokens: 0, input, out };
                let on = Site::on::<B>(&device, dtype);
                let found = check_grouped_linear(on, counts, sizes, storage, rank);
                assert_within(&format!("grouped_linear in {dtype:?} on {}", site.name), found);
            }
        }
    }
}
