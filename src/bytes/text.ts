/**
 * Text that a guest wrote, made fit to be shown (H25).
 */

/** Controls, what reorders or hides text (bidirectional marks, zero-width and tag characters), lone surrogates. */
export const UNSHOWABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** `text` with everything that a terminal or a page might obey written as `\u{…}`. */
export function printable(text: string): string {
  return text.replace(UNSHOWABLE, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}
