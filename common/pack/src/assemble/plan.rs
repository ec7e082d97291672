//! Where everything goes, before anything is written.

use std::collections::{HashMap, hash_map::Entry};

use sctl_squashfs::{BlockSize, writer::FragmentEntry};

use crate::error::AssembleError;
use crate::index::{Content, PackData, Place};
use crate::tree::{Contents, NodeKind, Tree};

/// What is copied, what is made anew, and where each file's contents will be.
#[derive(Default)]
pub(super) struct Plan {
    /// Runs of blocks, copied in this order.
    pub(super) runs: Vec<Run>,
    /// Where they end, from the superblock.
    pub(super) copied_end: u64,
    /// Fragment blocks among them.
    pub(super) copied_fragments: Vec<FragmentEntry>,
    /// Tails that move to new fragment blocks, in their order.
    pub(super) gathers: Vec<Gather>,
    /// Number of new fragment blocks.
    pub(super) new_fragments: u32,
    /// Added files that get blocks of their own, in this order.
    pub(super) added_files: Vec<u32>,
    /// Bytes of contents that are compressed anew.
    pub(super) rewritten_bytes: u64,
    /// Bytes of contents that are left out because they are there already.
    pub(super) duplicate_bytes: u64,
    /// By pack and content.
    locations: Vec<Vec<Location>>,
    /// By number of the addition.
    added_locations: Vec<Location>,
}

/// Consecutive bytes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) pack: usize,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What is taken out of one place to go to new fragment blocks.
pub(super) struct Gather {
    pub(super) source: Source,
    pub(super) pieces: Vec<Piece>,
}

/// Where tails are taken from.
pub(super) enum Source {
    /// A fragment block that cannot be copied: where it is, and how many bytes
    /// it holds.
    Pack { pack: usize, start: u64, size: BlockSize, len: u32 },
    /// An added file.
    Addition(u32),
}

/// Part of a source, and the new fragment block that it goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) target: u32,
}

/// Where contents will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Location {
    /// Nowhere: no file of the tree has them.
    Dead,
    /// Somewhere: a file of the tree has them, but their place is not known.
    Live,
    /// In blocks copied to `start`; pack and content have their size words.
    Blocks { pack: u32, content: u32, start: u64 },
    /// In a fragment block of the image.
    Fragment { index: u32, offset: u32 },
    /// In blocks of their own, made of the file at this place of `added_files`.
    Added { place: u32 },
}

impl Plan {
    pub(super) fn of(tree: &Tree, data_start: u64, block_size: u32) -> Result<Self, AssembleError> {
        let plan = Self {
            copied_end: data_start,
            locations: tree.packs.iter().map(|pack| vec![Location::Dead; pack.contents.len()]).collect(),
            added_locations: vec![Location::Dead; tree.additions.len()],
            ..Self::default()
        };
        let mut planner = Planner { plan, block_size, known: HashMap::new(), data_start, gather_offset: 0 };
        planner.find_live(tree);
        for (pack, index) in tree.packs.iter().enumerate() {
            planner.place_pack(pack, index);
        }
        planner.place_tails(tree)?;
        planner.place_additions(tree)?;
        planner.place_duplicates(tree);
        Ok(planner.plan)
    }

    /// Where the contents of a file that is not empty will be.
    pub(super) fn location(&self, contents: Contents) -> Location {
        match contents {
            Contents::Empty => Location::Dead,
            Contents::Packed { pack, content } => self.locations[pack as usize][content as usize],
            Contents::Added(number) => self.added_locations[number as usize],
        }
    }
}

struct Planner {
    plan: Plan,
    block_size: u32,
    data_start: u64,
    /// Who has contents first, by their length and digest.
    known: HashMap<(u64, [u8; 32]), Location>,
    /// Bytes in the last of the new fragment blocks.
    gather_offset: u32,
}

/// A stretch of a pack that is copied as it is.
struct Unit {
    start: u64,
    len: u64,
    what: Copied,
}

enum Copied {
    /// The blocks of this content.
    Blocks(usize),
    /// A fragment block, and the contents in it.
    Fragment(BlockSize, Vec<usize>),
}

impl Planner {
    /// Marks what the tree refers to.
    fn find_live(&mut self, tree: &Tree) {
        for node in tree.nodes() {
            match node.kind {
                NodeKind::File(Contents::Packed { pack, content }) => {
                    self.plan.locations[pack as usize][content as usize] = Location::Live;
                }
                NodeKind::File(Contents::Added(number)) => {
                    self.plan.added_locations[number as usize] = Location::Live;
                }
                _ => {}
            }
        }
    }

    /// Tells which contents of a pack are in the tree and were not in a lower
    /// pack, or earlier in this one.
    fn originals(&mut self, pack: usize, index: &PackData) -> Vec<bool> {
        let mut is_original = |(content, location): (&Content, &Location)| {
            if *location == Location::Dead {
                return false;
            }
            match self.known.entry((content.size, content.digest)) {
                Entry::Occupied(_) => {
                    self.plan.duplicate_bytes += content.size;
                    false
                }
                Entry::Vacant(entry) => {
                    entry.insert(Location::Live);
                    true
                }
            }
        };
        index.contents.iter().zip(&self.plan.locations[pack]).map(&mut is_original).collect()
    }

    /// Plans what is copied from a pack, in the order of its bytes, and notes
    /// the tails that are not.
    fn place_pack(&mut self, pack: usize, index: &PackData) {
        let originals = self.originals(pack, index);
        let mut units = Vec::new();
        // The contents of one fragment block follow one another, apart from
        // larger files in between.
        let mut open: Option<(u32, Vec<usize>)> = None;
        for (number, content) in index.contents.iter().enumerate() {
            match content.place {
                Place::Blocks { stored, .. } if originals[number] => {
                    units.push(Unit { start: content.start, len: stored, what: Copied::Blocks(number) });
                }
                Place::Blocks { .. } => {}
                Place::Fragment { block, .. } => match &mut open {
                    Some((current, members)) if *current == block => members.push(number),
                    _ => {
                        let closed = open.replace((block, vec![number]));
                        self.close_fragment(pack, index, &originals, closed, &mut units);
                    }
                },
            }
        }
        self.close_fragment(pack, index, &originals, open, &mut units);
        units.sort_by_key(|unit| unit.start);
        for unit in units {
            self.copy(pack, index, unit);
        }
    }

    fn close_fragment(
        &mut self,
        pack: usize,
        index: &PackData,
        originals: &[bool],
        fragment: Option<(u32, Vec<usize>)>,
        units: &mut Vec<Unit>,
    ) {
        let Some((block, members)) = fragment else { return };
        let Some(&first) = members.first() else { return };
        let (start, size) = (index.contents[first].start, index.blocks[block as usize]);
        if members.iter().all(|number| originals[*number]) {
            let len = u64::from(size.stored_len());
            units.push(Unit { start, len, what: Copied::Fragment(size, members) });
            return;
        }
        // Contents in fragments are smaller than a block.
        let len = members.iter().map(|number| index.contents[*number].size as u32).sum();
        let pieces = members.iter().filter(|number| originals[**number]).map(|number| Piece {
            offset: fragment_offset(index, *number),
            len: index.contents[*number].size as u32,
            target: *number as u32,
        });
        let pieces: Vec<_> = pieces.collect();
        if !pieces.is_empty() {
            self.plan.gathers.push(Gather { source: Source::Pack { pack, start, size, len }, pieces });
        }
    }

    fn copy(&mut self, pack: usize, index: &PackData, unit: Unit) {
        let start = self.plan.copied_end;
        match unit.what {
            Copied::Blocks(content) => {
                // Of a file of zeros nothing is stored; it still needs a start
                // inside the data area.
                let start = if unit.len == 0 { self.data_start } else { start };
                let location = Location::Blocks { pack: pack as u32, content: content as u32, start };
                self.place(pack, index, content, location);
            }
            Copied::Fragment(size, members) => {
                let fragment = self.plan.copied_fragments.len() as u32;
                self.plan.copied_fragments.push(FragmentEntry { start, size });
                for content in members {
                    let offset = fragment_offset(index, content);
                    self.place(pack, index, content, Location::Fragment { index: fragment, offset });
                }
            }
        }
        self.plan.copied_end += unit.len;
        match self.plan.runs.last_mut() {
            Some(run) if run.pack == pack && run.offset + run.len == unit.start => run.len += unit.len,
            _ if unit.len > 0 => self.plan.runs.push(Run { pack, offset: unit.start, len: unit.len }),
            _ => {}
        }
    }

    fn place(&mut self, pack: usize, index: &PackData, content: usize, location: Location) {
        self.plan.locations[pack][content] = location;
        let Some(content) = index.contents.get(content) else { return };
        self.known.insert((content.size, content.digest), location);
    }

    /// Gives tails that are not copied their places in new fragment blocks.
    fn place_tails(&mut self, tree: &Tree) -> Result<(), AssembleError> {
        let mut gathers = std::mem::take(&mut self.plan.gathers);
        for gather in &mut gathers {
            let Source::Pack { pack, .. } = gather.source else { continue };
            for piece in &mut gather.pieces {
                // Until now the piece has named its contents there.
                let content = piece.target as usize;
                let location = self.next_tail(piece)?;
                self.place(pack, &tree.packs[pack], content, location);
            }
        }
        self.plan.gathers = gathers;
        Ok(())
    }

    /// The next place in new fragment blocks.
    fn next_tail(&mut self, piece: &mut Piece) -> Result<Location, AssembleError> {
        let plan = &mut self.plan;
        if plan.new_fragments == 0 || self.gather_offset + piece.len > self.block_size {
            plan.new_fragments += 1;
            self.gather_offset = 0;
        }
        piece.target = plan.new_fragments - 1;
        plan.rewritten_bytes += u64::from(piece.len);
        let index = u32::try_from(plan.copied_fragments.len())
            .ok()
            .and_then(|copied| copied.checked_add(piece.target))
            .ok_or(AssembleError::TooLarge { what: "number of fragment blocks" })?;
        let offset = self.gather_offset;
        self.gather_offset += piece.len;
        Ok(Location::Fragment { index, offset })
    }

    /// Gives added files their places.
    fn place_additions(&mut self, tree: &Tree) -> Result<(), AssembleError> {
        for (number, bytes) in tree.additions.iter().enumerate() {
            if self.plan.added_locations[number] == Location::Dead {
                continue;
            }
            let key = (bytes.len() as u64, *blake3::hash(bytes).as_bytes());
            if let Some(location) = self.known.get(&key) {
                self.plan.added_locations[number] = *location;
                self.plan.duplicate_bytes += bytes.len() as u64;
                continue;
            }
            let too_large = |_| AssembleError::TooLarge { what: "added file" };
            let number_there = u32::try_from(number).map_err(too_large)?;
            let location = if bytes.len() < self.block_size as usize {
                let len = u32::try_from(bytes.len()).map_err(too_large)?;
                let mut piece = Piece { offset: 0, len, target: 0 };
                let location = self.next_tail(&mut piece)?;
                self.plan.gathers.push(Gather { source: Source::Addition(number_there), pieces: vec![piece] });
                location
            } else {
                self.plan.rewritten_bytes += bytes.len() as u64;
                self.plan.added_files.push(number_there);
                Location::Added { place: self.plan.added_files.len() as u32 - 1 }
            };
            self.plan.added_locations[number] = location;
            self.known.insert(key, location);
        }
        Ok(())
    }

    /// Leads contents that are stored elsewhere there.
    fn place_duplicates(&mut self, tree: &Tree) {
        for (index, locations) in tree.packs.iter().zip(&mut self.plan.locations) {
            for (content, location) in index.contents.iter().zip(locations) {
                if *location == Location::Live
                    && let Some(known) = self.known.get(&(content.size, content.digest))
                {
                    *location = *known;
                }
            }
        }
    }
}

fn fragment_offset(index: &PackData, content: usize) -> u32 {
    match index.contents[content].place {
        Place::Fragment { offset, .. } => offset,
        Place::Blocks { .. } => 0,
    }
}
