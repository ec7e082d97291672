//! Kernel mounts on the real kernel: loop devices, squashfs, a real helper,
//! and unprivileged users who try to get more than they were given.

mod attacks;
mod crash;
mod fallbacks;
mod life;
mod support;
