// Connect the buttons of quick lengths with the slider of the length, which alone is the form's field.

/** Return the chosen quick length; `seconds` if the choice is empty, which a click can cause while the slider has the focus. */
export const choose = (chosen, seconds) => chosen ?? seconds;

/** Return the quick length that equals the slider's, or null. */
export const follow = (quick, seconds) => (quick.includes(seconds) ? seconds : null);
