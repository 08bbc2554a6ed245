//! The pool against a naive one: lists and counts without links.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Operation {
    Take,
    Hold(usize),
    Release(usize),
    Name(usize, u8),
    Find(u8),
}

/// A pool as one would write it first.
#[derive(Default)]
struct Naive {
    /// Front first.
    free: Vec<u32>,
    holders: Vec<u32>,
    names: Vec<Option<u8>>,
}

fn name(of: u8) -> Name {
    // two of three names share a digest, as if it had failed
    Name { digest: [of / 2; 32], tokens: [u32::from(of); BLOCK] }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    use Operation::*;
    let one = prop_oneof![
        3 => Just(Take),
        2 => any::<usize>().prop_map(Hold),
        4 => any::<usize>().prop_map(Release),
        2 => (any::<usize>(), 0..12_u8).prop_map(|(i, n)| Name(i, n)),
        2 => (0..12_u8).prop_map(Find),
    ];
    prop::collection::vec(one, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_naive_pool(blocks in 1..9_u32, operations in operations()) {
        let mut pool = BlockPool::new(blocks);
        let mut naive = Naive { free: (0..blocks).collect(), holders: vec![0; blocks as usize], names: vec![None; blocks as usize] };
        // one table of each held block for each time it is held
        let mut held: Vec<u32> = vec![];
        for operation in operations {
            match operation {
                Operation::Take => {
                    let expected = (!naive.free.is_empty()).then(|| naive.free.remove(0));
                    let got = pool.take();
                    prop_assert_eq!(got, expected);
                    if let Some(id) = got {
                        (naive.names[id as usize], naive.holders[id as usize]) = (None, 1);
                        held.push(id);
                    }
                }
                Operation::Hold(i) => {
                    let id = (i % blocks as usize) as u32;
                    pool.hold(id);
                    naive.free.retain(|f| *f != id);
                    naive.holders[id as usize] += 1;
                    held.push(id);
                }
                Operation::Release(i) if !held.is_empty() => {
                    let id = held.swap_remove(i % held.len());
                    pool.release(&[id]);
                    naive.holders[id as usize] -= 1;
                    if naive.holders[id as usize] == 0 {
                        let at = if naive.names[id as usize].is_some() { naive.free.len() } else { 0 };
                        naive.free.insert(at, id);
                    }
                }
                Operation::Name(i, n) if !held.is_empty() => {
                    let id = held[i % held.len()];
                    pool.name(id, name(n));
                    let taken = naive.names.iter().flatten().any(|other| other / 2 == n / 2);
                    if !taken && naive.names[id as usize].is_none() {
                        naive.names[id as usize] = Some(n);
                    }
                }
                Operation::Find(n) => {
                    let expected = naive.names.iter().position(|other| *other == Some(n)).map(|id| id as u32);
                    prop_assert_eq!(pool.find(&name(n)), expected);
                }
                _ => {}
            }
            pool.check(held.iter().map(std::slice::from_ref));
            prop_assert_eq!(pool.free_list(), naive.free.clone());
            prop_assert_eq!(pool.named(), naive.names.iter().flatten().count());
        }
    }
}

#[test]
fn a_table_is_forgotten_from_its_end() {
    let mut pool = BlockPool::new(4);
    let table: Vec<u32> = (0..3).map(|_| pool.take().unwrap()).collect();
    table.iter().zip(0..).for_each(|(id, n)| pool.name(*id, name(2 * n)));
    pool.release(&table);
    // the one without a name, then the end of the table
    assert_eq!(pool.free_list(), [3, 2, 1, 0]);
    assert_eq!(pool.take(), Some(3));
    assert_eq!((pool.named(), pool.find(&name(4))), (3, Some(2)));
    assert_eq!(pool.take(), Some(2));
    assert_eq!((pool.named(), pool.find(&name(4))), (2, None));
    pool.hold(0);
    assert!(pool.is_held(0) && pool.find(&name(0)) == Some(0), "what is found is as good as it was");
    assert_eq!((pool.take(), pool.take()), (Some(1), None));
}
