//! Where kernels find the weights of a block: in a tile as it is stored, or expanded to bytes.

use super::lanes::Lanes;
use crate::format::BlockFormat;
use crate::tile::{PLANE_BYTES, QUADS, TILE};

/// Calls `with!` with what a format is in types: its name, its spans, whether they have minima.
macro_rules! for_format {
    ($format:expr, $with:ident) => {
        match $format {
            BlockFormat::Q4_0 => $with!(Q4_0, 1, false),
            BlockFormat::Q4_1 => $with!(Q4_1, 1, true),
            BlockFormat::Q5_0 => $with!(Q5_0, 1, false),
            BlockFormat::Q5_1 => $with!(Q5_1, 1, true),
            BlockFormat::Q8_0 => $with!(Q8_0, 1, false),
            BlockFormat::Q2K => $with!(Q2K, 2, true),
            BlockFormat::Q3K => $with!(Q3K, 2, false),
            BlockFormat::Q4K => $with!(Q4K, 1, true),
            BlockFormat::Q5K => $with!(Q5K, 1, true),
            BlockFormat::Q6K => $with!(Q6K, 2, false),
            BlockFormat::Iq4Nl => $with!(Iq4Nl, 1, false),
            BlockFormat::Iq4Xs => $with!(Iq4Xs, 1, false),
            BlockFormat::Mxfp4 => $with!(Mxfp4, 1, false),
        }
    };
}
pub(super) use for_format;

/// Groups of a tile in some layout. Methods may be called only with pointers to a group of that layout.
pub(super) trait Weights {
    /// Spans of a block: runs of inputs that share a scale.
    const SPANS: usize;
    /// Whether codes are bytes already.
    const IS_EXPANDED: bool;
    /// Whether spans have minima.
    const HAS_MINIMA: bool;
    /// Blocks of 32 inputs in a group.
    const BLOCKS: usize;
    /// Bytes of a group.
    const GROUP_BYTES: usize;

    /// Scale and minimum of a span, by output.
    ///
    /// # Safety
    /// `block` and `span` are in the group; the CPU has what `L` needs.
    unsafe fn factors<L: Lanes>(group: *const u8, block: usize, span: usize) -> (L, L);

    /// Makes the block ready for `quad`.
    ///
    /// # Safety
    /// As `factors`'.
    unsafe fn open<L: Lanes>(group: *const u8, block: usize) -> OpenBlock<L>;

    /// Codes of quad `quad`, or what [`Lanes::expanded`] made of them; called for 0 to 7 in this order.
    ///
    /// # Safety
    /// As `factors`'.
    unsafe fn quad<L: Lanes>(block: &mut OpenBlock<L>, quad: usize) -> L::Bytes;
}

/// A block whose quads are being read.
#[derive(Clone, Copy)]
pub(super) struct OpenBlock<L: Lanes> {
    codes: *const u8,
    /// Single bits, this quad's on top.
    bits: L::Bytes,
    /// Pairs of bits, this quad's on top.
    pairs: L::Bytes,
}

/// A tile as it is stored; `FORMAT` is an index into [`BlockFormat::ALL`].
pub(super) struct Stored<const FORMAT: usize>;

impl<const FORMAT: usize> Stored<FORMAT> {
    const FORMAT: BlockFormat = BlockFormat::ALL[FORMAT];
}

impl<const FORMAT: usize> Weights for Stored<FORMAT> {
    const SPANS: usize = Self::FORMAT.spans();
    const IS_EXPANDED: bool = false;
    const HAS_MINIMA: bool = Self::FORMAT.has_minima();
    const BLOCKS: usize = Self::FORMAT.group_layout().num_blocks;
    const GROUP_BYTES: usize = Self::FORMAT.group_layout().num_bytes;

    #[inline(always)]
    unsafe fn factors<L: Lanes>(group: *const u8, block: usize, span: usize) -> (L, L) {
        let layout = Self::FORMAT.group_layout();
        let steps = (block * Self::SPANS + span) * TILE;
        // Codes stand in the high bits of their bytes; a code book has whole bytes, doubled where scales are exponents.
        let unit = match Self::FORMAT.code_book() {
            Some(_) if Self::FORMAT.has_exponents() => 0.5,
            Some(_) => 1.0,
            None => 1.0 / (1u32 << (8 - Self::FORMAT.bits())) as f32,
        };
        // SAFETY: the caller's promise: the group has its parts where the layout says.
        unsafe {
            let scale = if Self::FORMAT.has_exponents() { L::load_exponents(group) } else { L::load_f16(group.cast()) };
            let mut scale = scale.mul(L::splat(unit));
            if Self::FORMAT.has_shared_steps() {
                scale = scale.mul(L::load_low_nibbles(group.add(layout.scale_steps + steps)));
            } else if Self::FORMAT.has_steps() {
                scale = scale.mul(L::load_i8(group.add(layout.scale_steps + steps).cast()));
            }
            if !Self::HAS_MINIMA {
                return (scale, scale);
            }
            // Kernels take 128 from every code.
            let zero = L::splat(128.0);
            let minimum = L::load_f16(group.add(layout.minima).cast());
            let minimum = if Self::FORMAT.has_shared_steps() {
                let steps = L::load_high_nibbles(group.add(layout.scale_steps + steps));
                steps.mul_add(minimum, scale.mul(zero))
            } else if Self::FORMAT.has_steps() {
                L::load_i8(group.add(layout.minimum_steps + steps).cast()).mul_add(minimum, scale.mul(zero))
            } else {
                scale.mul_add(zero, minimum)
            };
            (scale, minimum)
        }
    }

    #[inline(always)]
    unsafe fn open<L: Lanes>(group: *const u8, block: usize) -> OpenBlock<L> {
        let layout = Self::FORMAT.block_layout();
        // SAFETY: the caller's promise: the group has a plane of bits, or at least four planes, there.
        unsafe {
            let codes = group.add(Self::FORMAT.group_layout().codes + block * layout.num_bytes);
            let bits = L::load_bytes(codes);
            OpenBlock { codes, bits, pairs: bits }
        }
    }

    #[inline(always)]
    unsafe fn quad<L: Lanes>(block: &mut OpenBlock<L>, quad: usize) -> L::Bytes {
        let layout = Self::FORMAT.block_layout();
        let is_low = quad < QUADS / 2;
        // SAFETY: the caller's promise: planes are where the layout says.
        unsafe {
            let nibbles = block.codes.add(layout.nibbles + quad % 4 * PLANE_BYTES);
            if matches!(layout.bits, 2 | 3 | 6) {
                block.pairs = if quad.is_multiple_of(4) {
                    L::load_bytes(block.codes.add(layout.pairs + quad / 4 * PLANE_BYTES))
                } else {
                    L::shift_left::<2>(block.pairs)
                };
            }
            if matches!(layout.bits, 3 | 5) && quad > 0 {
                block.bits = L::shift_left::<1>(block.bits);
            }
            match layout.bits {
                2 => L::mask(block.pairs, 0xc0),
                3 => L::or(L::mask(L::shift_right::<1>(block.pairs), 0x60), L::mask(block.bits, 0x80)),
                4 => match Self::FORMAT.code_book() {
                    Some(book) if is_low => L::look_up(book, L::mask(L::load_bytes(nibbles), 0x0f)),
                    Some(book) => L::look_up(book, L::mask(L::shift_right::<4>(L::load_bytes(nibbles)), 0x0f)),
                    None if is_low => L::mask(L::shift_left::<4>(L::load_bytes(nibbles)), 0xf0),
                    None => L::mask(L::load_bytes(nibbles), 0xf0),
                },
                5 => {
                    let low = if is_low {
                        L::shift_left::<3>(L::load_bytes(nibbles))
                    } else {
                        L::shift_right::<1>(L::load_bytes(nibbles))
                    };
                    L::or(L::mask(low, 0x78), L::mask(block.bits, 0x80))
                }
                6 => {
                    let low = if is_low {
                        L::shift_left::<2>(L::load_bytes(nibbles))
                    } else {
                        L::shift_right::<2>(L::load_bytes(nibbles))
                    };
                    L::or(L::mask(low, 0x3c), L::mask(block.pairs, 0xc0))
                }
                _ => L::load_bytes(block.codes.add(quad * PLANE_BYTES)),
            }
        }
    }
}

/// Codes as bytes, scales and minima as f32: what many rows read instead of taking a stored tile apart each time.
pub(super) struct Expanded<const SPANS: usize, const HAS_MINIMA: bool>;

/// 16 floats.
const FLOATS_BYTES: usize = 4 * TILE;

impl<const SPANS: usize, const HAS_MINIMA: bool> Weights for Expanded<SPANS, HAS_MINIMA> {
    const SPANS: usize = SPANS;
    const IS_EXPANDED: bool = true;
    const HAS_MINIMA: bool = HAS_MINIMA;
    const BLOCKS: usize = 1;
    const GROUP_BYTES: usize = Self::CODES + QUADS * PLANE_BYTES;

    #[inline(always)]
    unsafe fn factors<L: Lanes>(group: *const u8, _block: usize, span: usize) -> (L, L) {
        // SAFETY: the caller's promise: `expand` wrote them.
        unsafe {
            let scale = L::load(group.add(Self::scales(span)).cast());
            (scale, if HAS_MINIMA { L::load(group.add(Self::minima(span)).cast()) } else { scale })
        }
    }

    #[inline(always)]
    unsafe fn open<L: Lanes>(group: *const u8, _block: usize) -> OpenBlock<L> {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = group.add(Self::CODES);
            let bits = L::load_bytes(codes);
            OpenBlock { codes, bits, pairs: bits }
        }
    }

    #[inline(always)]
    unsafe fn quad<L: Lanes>(block: &mut OpenBlock<L>, quad: usize) -> L::Bytes {
        // SAFETY: the caller's promise.
        unsafe { L::load_bytes(block.codes.add(quad * PLANE_BYTES)) }
    }
}

/// [`Expanded`], with where its parts are.
pub(super) trait ExpandedWeights: Weights {
    /// Where a block's codes begin.
    const CODES: usize;

    /// Where a span's scales begin.
    fn scales(span: usize) -> usize;

    /// Where its minima begin.
    fn minima(span: usize) -> usize;
}

impl<const SPANS: usize, const HAS_MINIMA: bool> ExpandedWeights for Expanded<SPANS, HAS_MINIMA> {
    const CODES: usize = SPANS * FLOATS_BYTES * if HAS_MINIMA { 2 } else { 1 };

    #[inline(always)]
    fn scales(span: usize) -> usize {
        span * FLOATS_BYTES
    }

    #[inline(always)]
    fn minima(span: usize) -> usize {
        (SPANS + span) * FLOATS_BYTES
    }
}

/// Writes a stored tile of `num_groups` groups to `out`, block by block.
///
/// # Safety
/// `tile` points to so many groups of layout `S`; `out` has room for their blocks; the CPU has what `L` needs.
#[inline(always)]
pub(super) unsafe fn expand<L: Lanes, S: Weights, E: ExpandedWeights>(
    tile: *const u8,
    num_groups: usize,
    out: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut to = out;
        for group in 0..num_groups {
            let group = tile.add(group * S::GROUP_BYTES);
            for block in 0..S::BLOCKS {
                for span in 0..S::SPANS {
                    let (scale, minimum) = S::factors::<L>(group, block, span);
                    scale.store(to.add(E::scales(span)).cast());
                    if S::HAS_MINIMA {
                        minimum.store(to.add(E::minima(span)).cast());
                    }
                }
                let mut open = S::open::<L>(group, block);
                for quad in 0..QUADS {
                    L::store_bytes(L::expanded(S::quad(&mut open, quad)), to.add(E::CODES + quad * PLANE_BYTES));
                }
                to = to.add(E::GROUP_BYTES);
            }
        }
    }
}
