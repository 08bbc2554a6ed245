// What the checks do to the page, in its users' words.

export const PROMPT = '#prompt', ANSWER = 'article.assistant:last-of-type';

// The answer that was written last has come to its end.
export const settled = page => page.until(() => {
  const last = [...document.querySelectorAll('article.assistant')].at(-1);
  return last && last.dataset.state !== 'writing' && document.getElementById('stop').hidden;
});

export async function say(page, text) {
  await page.until(() => document.getElementById('model').value);
  await page.run(s => document.querySelector(s).focus(), PROMPT);
  await page.type(text);
  await page.press('Enter');
  await page.until(t => [...document.querySelectorAll('article.user > .body')].at(-1)?.textContent === t, text);
}

export async function ask(page, text) {
  await say(page, text);
  await settled(page);
}

export const act = (page, name) => page.click(`${ANSWER} [data-act="${name}"]`);
export const bodyOf = page => page.run(s => document.querySelector(s).querySelector(':scope > .body').textContent, ANSWER);
export const focused = page => page.run(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);

// All lengths that the answer had while it grew.
export async function watchGrowth(page) {
  await page.run(s => {
    globalThis.lengths = [];
    new MutationObserver(() => {
      const length = document.querySelector(s)?.textContent.length ?? 0;
      if (globalThis.lengths.at(-1) !== length) globalThis.lengths.push(length);
    }).observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true });
  }, ANSWER);
  return () => page.run(() => globalThis.lengths);
}
