// The quick lengths and the slider: one field, which is the slider's.

/** Leaving the slider's box by a click on a quick length can empty the choice before it is read. */
export const choose = (chosen, seconds) => chosen ?? seconds;

/** Return which of the quick lengths the slider shows, if any. */
export const follow = (quick, seconds) => (quick.includes(seconds) ? seconds : null);
