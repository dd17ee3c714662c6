// Start the pages' own scripts. `eichi` is their only global name; Python calls their functions by it (`static_files.py`).
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

// Set the document's language, by which browsers choose between Chinese and Japanese forms of a character. Gradio sets the
// browser's language instead of the page's.
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
