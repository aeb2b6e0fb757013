//! Loops of a control flow graph.

/// For each node, how many loops lie around it. `successors[n]` are the nodes that may follow n; node 0 is the entry.
///
/// A loop is a strongly connected component; those inside it are the components that remain without its header. Addresses
/// alone would not do: compilers put the slow path of a wait behind the code that it jumps back to.
pub fn loops_around(successors: &[Vec<usize>]) -> Vec<u32> {
    let mut depth = vec![0; successors.len()];
    // The region that each node is in, so that edges out of the region under work are passed over.
    let mut region = vec![0; successors.len()];
    let mut open: Vec<(usize, Vec<usize>)> = vec![(0, (0..successors.len()).collect())];
    let mut regions = 1;
    while let Some((id, nodes)) = open.pop() {
        for mut component in components(successors, &nodes, &region, id) {
            let repeats = component.len() > 1 || successors[component[0]].contains(&component[0]);
            if !repeats {
                continue;
            }
            component.sort_unstable();
            let outside = (0..successors.len()).filter(|node| component.binary_search(node).is_err());
            let entries = outside.flat_map(|node| &successors[node]).filter_map(|to| component.binary_search(to).ok());
            let header = entries.min().unwrap_or(0);
            for &node in &component {
                depth[node] += 1;
                region[node] = regions;
            }
            let header = component.remove(header);
            region[header] = usize::MAX;
            open.push((regions, component));
            regions += 1;
        }
    }
    depth
}

/// Strongly connected components of the nodes of one region (Tarjan 1972), without recursion.
fn components(successors: &[Vec<usize>], nodes: &[usize], region: &[usize], id: usize) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let mut index = vec![NEW; successors.len()];
    let mut low = vec![0; successors.len()];
    let mut on_stack = vec![false; successors.len()];
    let (mut stack, mut found, mut next) = (Vec::new(), Vec::new(), 0);
    for &root in nodes {
        // Nodes with the edge to look at next.
        let mut path = if index[root] == NEW { vec![(root, 0)] } else { vec![] };
        while let Some((node, edge)) = path.pop() {
            if edge == 0 {
                (index[node], low[node]) = (next, next);
                next += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some(&to) = successors[node].get(edge) {
                path.push((node, edge + 1));
                if region[to] == id && index[to] == NEW {
                    path.push((to, 0));
                } else if region[to] == id && on_stack[to] {
                    low[node] = low[node].min(index[to]);
                }
                continue;
            }
            if let Some(&(parent, _)) = path.last() {
                low[parent] = low[parent].min(low[node]);
            }
            if low[node] == index[node] {
                let start = stack.iter().rposition(|&n| n == node).unwrap_or(0);
                let component = stack.split_off(start);
                component.iter().for_each(|&n| on_stack[n] = false);
                found.push(component);
            }
        }
    }
    found
}
