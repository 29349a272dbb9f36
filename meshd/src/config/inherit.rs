//! What BGP peers have of their groups.
//!
//! Done on the tree of values, before it is taken apart: tables are merged key by key at any depth, and every value keeps
//! the place it was written at, so that a mistake in a group is reported in the group.

use super::tree::{Node, Tree};

/// The tree in which every peer has what its group has and it has not.
pub(super) fn expand(tree: &Node) -> Node {
    let mut tree = tree.clone();
    let groups = tree.get("bgp.peer_groups").cloned();
    let Some(Node { value: Tree::Table(groups), .. }) = groups else { return tree };
    let Some(bgp) = child(&mut tree, "bgp") else { return tree };
    let Some(Node { value: Tree::List(peers), .. }) = child(bgp, "peers") else { return tree };
    for peer in peers {
        let name = match peer.get("group") {
            Some(Node { value: Tree::Leaf(name), .. }) => name.to_string(),
            Some(_) | None => continue,
        };
        if let Some(group) = groups.get(&name) {
            let own = std::mem::replace(peer, group.clone());
            peer.origin.clone_from(&own.origin);
            peer.merge("bgp.peer_groups", own);
        }
    }
    tree
}

/// True for a key of a peer that its group wrote: what is wrong with it was said of the group.
pub(super) fn is_inherited(written: &Node, expanded: &Node, key: &str) -> bool {
    key.starts_with("bgp.peers[") && find(expanded, key).is_some() && find(written, key).is_none()
}

fn child<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Tree::Table(table) => table.get_mut(key),
        Tree::List(_) | Tree::Leaf(_) => None,
    }
}

/// The value at a key with indexes.
fn find<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let mut node = node;
    for part in key.split(['.', '[']) {
        node = match (&node.value, part.strip_suffix(']')) {
            (Tree::List(items), Some(index)) => items.get(index.parse::<usize>().ok()?)?,
            (Tree::Table(table), None) => table.get(part)?,
            (Tree::Table(_) | Tree::List(_) | Tree::Leaf(_), _) => return None,
        };
    }
    Some(node)
}
