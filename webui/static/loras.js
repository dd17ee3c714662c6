// Change the LoRA slots, which are JSON in a hidden box. Functions with `all` take and return that JSON.
//
// A slot that the user changed is marked as `theirs`: its components already show that or something newer, so the server does
// not update them.

// Numbers are rounded to 1 / DIGITS, because a slider's steps add up binary rounding errors.
const DIGITS = 1e6;

const round = (strength) => (strength == null ? null : Math.round(strength * DIGITS) / DIGITS);
const storageKey = (mode) => `eichi-loras-${mode}`;

// Return all slots, filled up with copies of `empty` to at least `count`.
function parse(all, count, empty) {
  const slots = JSON.parse(all || '[]');
  while (slots.length < count) slots.push({ ...empty });
  return slots;
}

/** Put a file and its strength into a slot. number: the slot's. count: the least number of slots. empty: an empty slot. */
export function setFile({ number, count, empty }, strength, file, all) {
  const slots = parse(all, count, empty);
  slots[number] = { file: file ?? '', strength: round(strength), theirs: true };
  return JSON.stringify(slots);
}

/** Put a changed strength into its slot, unless the server has set it: then the box already has it. */
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

/** Store the slots in the tab, because no request names them while LoRA are off. */
export function remember(mode, all) {
  if (all !== '[]') sessionStorage.setItem(storageKey(mode), all);
}

/** Return the stored slots if the box is empty, as after a reload. */
export function remembered(mode, all) {
  return all === '[]' ? (sessionStorage.getItem(storageKey(mode)) ?? all) : all;
}
