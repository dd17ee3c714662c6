// The pages' own code. `eichi` is the one name that it gives to others: Python calls these functions by it (`static_files.py`).
import { showActionResult } from './action_result.js';
import { showExamples } from './examples.js';
import { showFieldProblems } from './field_problems.js';
import * as form from './form.js';
import { showHistory } from './history.js';
import { guardInputs } from './input_guards.js';
import * as length from './length.js';
import * as loras from './loras.js';
import { showMessages } from './messages.js';
import { page } from './page.js';
import { poll } from './polling.js';
import { showProgress } from './progress.js';
import { showQueue } from './queue.js';
import { guardEvents } from './tab.js';
import * as timeline from './timeline.js';
import { showViewer } from './viewer.js';

// Chinese and Japanese draw shared characters differently; the browser goes by the language. Gradio names the browser's own,
// whatever that of the page is.
function keepLanguage() {
  const root = document.documentElement;
  if (root.lang !== page.language) root.lang = page.language;
}
keepLanguage();
new MutationObserver(keepLanguage).observe(document.documentElement, { attributeFilter: ['lang'] });
guardEvents();
guardInputs();
form.noteTouches();

window.eichi = Object.freeze({
  showActionResult,
  showExamples,
  showFieldProblems,
  showHistory,
  showMessages,
  showProgress,
  showQueue,
  showViewer,
  poll,
  form,
  length,
  loras,
  timeline,
});
