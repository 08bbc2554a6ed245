// Checks against a real server. What it answers is its own affair; what the page makes of it is not.
export const realChecks = [];
