//! The temperatures of a block, in memory that begins with a page.

use std::ops::{Deref, DerefMut};

/// Points that fill a page.
pub(crate) const PAGE_POINTS: usize = 4096 / size_of::<f64>();

/// Points that begin at the beginning of a page, so that rows of whole pages are whole pages.
#[derive(Debug)]
pub(crate) struct Grid {
    memory: Vec<f64>,
    start: usize,
    points: usize,
}

impl Grid {
    /// So many points at temperature 0.
    pub(crate) fn new(points: usize) -> Self {
        let memory = vec![0.0; points + PAGE_POINTS];
        let start = memory.as_ptr().align_offset(4096).min(PAGE_POINTS);
        Self {
            memory,
            start,
            points,
        }
    }
}

impl Deref for Grid {
    type Target = [f64];

    fn deref(&self) -> &[f64] {
        &self.memory[self.start..][..self.points]
    }
}

impl DerefMut for Grid {
    fn deref_mut(&mut self) -> &mut [f64] {
        &mut self.memory[self.start..][..self.points]
    }
}

impl Clone for Grid {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.points);
        copy.copy_from_slice(self);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_and_its_copy_begin_with_a_page() {
        for points in [1, 511, 512, 5000] {
            let mut grid = Grid::new(points);
            grid[points - 1] = 3.0;
            let copy = grid.clone();
            for grid in [&grid, &copy] {
                assert!(grid.as_ptr().addr().is_multiple_of(4096));
                assert_eq!((grid.len(), grid[points - 1]), (points, 3.0));
            }
        }
    }
}
