// The slots of LoRA: JSON in a hidden box. Functions with `all` take and return that JSON.
//
// What the user moved in a slot is marked as theirs: its components show it, or already what comes next, and the server leaves
// them alone.

// Numbers that differ by less are the same: a slider's steps add up in binary.
const DIGITS = 1e6;

const round = (strength) => (strength == null ? null : Math.round(strength * DIGITS) / DIGITS);
const storageKey = (mode) => `eichi-loras-${mode}`;

// All slots, at least `count`; a new one is `empty`.
function parse(all, count, empty) {
  const slots = JSON.parse(all || '[]');
  while (slots.length < count) slots.push({ ...empty });
  return slots;
}

/** settings: of the slot: its number, how many there are at least, and what an empty one is. */
export function setFile({ number, count, empty }, strength, file, all) {
  const slots = parse(all, count, empty);
  slots[number] = { file: file ?? '', strength: round(strength), theirs: true };
  return JSON.stringify(slots);
}

/** A slider also changes when the server moves a strength into its slot; that is in the box already. */
export function setStrength({ number, count, empty }, strength, file, all) {
  const slots = parse(all, count, empty);
  const slot = slots[number];
  const rounded = round(strength);
  const isSame = rounded === slot.strength || Math.abs(slot.strength - (rounded ?? Number.NaN)) <= 1 / DIGITS;
  if (slot.file === (file ?? '') && !isSame) Object.assign(slot, { strength: rounded, theirs: true });
  return JSON.stringify(slots);
}

export function removeSlot({ number, count, empty }, all) {
  const slots = parse(all, count, empty);
  slots.splice(number, 1);
  return JSON.stringify(slots.map(({ theirs, ...slot }) => slot));
}

export function addSlot({ count, most, empty }, all) {
  const slots = parse(all, count, empty);
  if (slots.length < most) slots.push({ ...empty });
  return JSON.stringify(slots);
}

/** While LoRA are off no request names their files, so a tab remembers its slots itself. */
export function remember(mode, all) {
  if (all !== '[]') sessionStorage.setItem(storageKey(mode), all);
}

/** Return the slots again when the tab is reloaded. */
export function remembered(mode, all) {
  return all === '[]' ? (sessionStorage.getItem(storageKey(mode)) ?? all) : all;
}
