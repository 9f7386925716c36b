local health = { status = "Progressing", message = "Waiting for the operator" }

if obj.metadata.deletionTimestamp ~= nil then
  health.message = "Draining: the controller ends its jobs and notifies their schedulers"
  return health
end

local status = obj.status
if status == nil or status.conditions == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local stalled, ready = conditions.Stalled, conditions.Ready
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if obj.spec.suspend then
  return { status = "Suspended", message = ready ~= nil and ready.message or nil }
end
if ready ~= nil and ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready ~= nil then
  health.message = ready.message
end
return health
