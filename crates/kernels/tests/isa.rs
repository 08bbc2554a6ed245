//! What is available can be used, and nothing else.

use billfish_kernels::{Backend, Isa};

/// The gate reads the line, to know that the instruction sets which it emulates were found and so tested.
#[test]
fn a_backend_is_of_an_available_instruction_set() {
    println!("instruction sets: {}", Isa::available().map(Isa::name).collect::<Vec<_>>().join(", "));
    for isa in Isa::ALL {
        assert_eq!(Backend::new(isa, 1).is_ok(), isa.is_available(), "{isa:?}");
    }
}
