//! Rounds keys and values into a block.

use super::lanes::Lanes;
use super::{KvElement, LANES};
use crate::rows::StridedRows;

/// What one step writes of one KV head: rows `[tokens, D]`.
pub(crate) struct HeadRows<'a> {
    pub(crate) num_tokens: usize,
    pub(crate) key: StridedRows<'a>,
    pub(crate) value: StridedRows<'a>,
}

/// Where it goes: one KV head of one block, from a token on.
pub(crate) struct HeadSlots<'a, E> {
    /// `[group, group_len]`.
    pub(crate) keys: &'a mut [E],
    /// `[token, row_len]`.
    pub(crate) values: &'a mut [E],
    /// The block's token that the first row is.
    pub(crate) offset: usize,
    /// [`KvElement::keys_len`] of the head size.
    pub(crate) group_len: usize,
    /// [`KvElement::row_len`] of the head size.
    pub(crate) row_len: usize,
}

/// # Safety
/// The CPU must have the features of `L`.
#[inline(always)]
pub(super) unsafe fn write_head<L: Lanes, E: KvElement>(rows: &HeadRows<'_>, slots: &mut HeadSlots<'_, E>) {
    for index in 0..rows.num_tokens {
        let offset = slots.offset + index;
        let (group, lane) = (offset / LANES, offset % LANES);
        let keys = &mut slots.keys[group * slots.group_len..][..slots.group_len];
        let values = &mut slots.values[offset * slots.row_len..][..slots.row_len];
        // SAFETY: the features are the caller's promise.
        unsafe {
            E::write_key::<L>(rows.key.row(index), keys, lane);
            E::write_value::<L>(rows.value.row(index), values);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kernels::{Isa, Q8};

    /// Keys and values of one token in a block of one lane group, as `isa` writes them.
    fn written<E: KvElement>(isa: Isa, head: &[f32]) -> (Vec<E>, Vec<E>) {
        let (group_len, row_len) = (E::keys_len(head.len()), E::row_len(head.len()));
        let (mut keys, mut values) = (vec![E::default(); group_len], vec![E::default(); row_len * LANES]);
        let rows = StridedRows::dense(head, head.len());
        let slots = HeadSlots { keys: &mut keys, values: &mut values, offset: 3, group_len, row_len };
        isa.write_head(&HeadRows { num_tokens: 1, key: rows, value: rows }, slots);
        (keys, values)
    }

    /// Random bits: all magnitudes, subnormals, infinities and NaN.
    fn any_floats(len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..len).map(|_| f32::from_bits(rng.random())).collect()
    }

    /// Halves as `half` rounds them, one by one.
    fn check_floats<E: KvElement>(round: impl Fn(f32) -> u16, bits: impl Fn(E) -> u16) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for head_size in [1, 16, 33, 64, 80].repeat(200) {
            let mut head = any_floats(head_size, &mut rng);
            // Ties, and the largest values that do not become infinite.
            head[0] = f32::from_bits(rng.random::<u32>() & !0xffff | 0x8000);
            for isa in Isa::all() {
                let (keys, values) = written::<E>(isa, &head);
                for (dim, element) in head.iter().enumerate() {
                    let expected = round(*element);
                    assert_eq!(bits(keys[dim * LANES + 3]), expected, "{isa:?} key {element:e}");
                    assert_eq!(bits(values[3 * E::row_len(head_size) + dim]), expected, "{isa:?} value {element:e}");
                }
            }
        }
    }

    #[test]
    fn every_float_becomes_the_nearest_half_or_the_largest() {
        let largest = f16::MAX.to_f32();
        check_floats::<f16>(|element| f16::from_f32(element.clamp(-largest, largest)).to_bits(), f16::to_bits);
        let largest = bf16::MAX.to_f32();
        check_floats::<bf16>(|element| bf16::from_f32(element.clamp(-largest, largest)).to_bits(), bf16::to_bits);
    }

    #[test]
    fn eight_bits_are_the_same_on_every_instruction_set() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let bytes = |written: Vec<Q8>| written.iter().map(|byte| byte.bits()).collect::<Vec<_>>();
        for exponent in (-140..128).step_by(3) {
            let mut head = any_floats(64, &mut rng);
            head[..32].iter_mut().for_each(|element| *element = rng.random_range(-1.0..1.0) * (exponent as f32).exp2());
            // Infinities saturate; a NaN's payload is the instruction set's affair.
            head[32..]
                .iter_mut()
                .for_each(|element| *element = if element.is_nan() { f32::INFINITY } else { *element });
            let mut all = Isa::all().into_iter().map(|isa| {
                let (keys, values) = written::<Q8>(isa, &head);
                (isa, bytes(keys), bytes(values))
            });
            let (_, keys, values) = all.next().expect("there is always one");
            for (isa, other_keys, other_values) in all {
                assert!(keys == other_keys && values == other_values, "{isa:?} of {head:?}");
            }
        }
    }
}
