//! Maglev tables: which slot of a hash belongs to whom (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! A table depends on the members and their weights only, not on their order of arrival: all nodes that know the same members
//! make the same table.

/// Somebody to share slots among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// What tells it from the others on every node.
    pub key: u64,
    /// Its share; 0 gets nothing.
    pub weight: u16,
}

/// The member of each of `slots` slots, by its place in `members`. `slots` is a prime; empty without a member that has a weight.
#[must_use]
pub fn fill(members: &[Member], slots: u32) -> Vec<u16> {
    let top = u32::from(members.iter().map(|member| member.weight).max().unwrap_or(0));
    if top == 0 {
        return Vec::new();
    }
    const FREE: u16 = u16::MAX;
    let mut table = vec![FREE; slots as usize];
    let mut turns: Vec<Turn> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.weight > 0)
        .map(|(place, member)| Turn::new(place, member, slots))
        .collect();
    let mut left = slots;
    loop {
        for turn in &mut turns {
            // Everybody takes a turn in each round in which its share has grown by one.
            turn.credit += turn.weight;
            if turn.credit < top {
                continue;
            }
            turn.credit -= top;
            while table[turn.at as usize] != FREE {
                turn.advance(slots);
            }
            table[turn.at as usize] = turn.place;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

/// A member's walk over the table: a permutation of all slots.
struct Turn {
    place: u16,
    weight: u32,
    credit: u32,
    at: u32,
    skip: u32,
}

impl Turn {
    fn new(place: usize, member: &Member, slots: u32) -> Self {
        let first = mix(member.key);
        let second = mix(first ^ 0x9e37_79b9_7f4a_7c15);
        Self {
            place: place as u16,
            weight: u32::from(member.weight),
            credit: 0,
            at: (first % u64::from(slots)) as u32,
            skip: (second % u64::from(slots - 1)) as u32 + 1,
        }
    }

    fn advance(&mut self, slots: u32) {
        self.at += self.skip;
        if self.at >= slots {
            self.at -= slots;
        }
    }
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
